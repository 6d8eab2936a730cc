"""Files of FC-CLIP and MAFT+ (fcclip_*.pth, maftp_*.pth; github.com/bytedance/fc-clip).

MAFT+ tuned the trunk of its CLIP, and its files are whole. FC-CLIP did not, so the trunk comes from
the CLIP it was made from: OpenCLIP's convnext_base_w_320 (laion_aesthetic_s13b_b82k_augreg) or
convnext_large_d_320 (laion2b_s29b_b131k_ft_soup). Texts are embedded by that CLIP, or by the one in
a MAFT+ file, which `open_clip.clip_rules` reads with the prefix `CLIP`.
"""

import re
import typing

from maskclippp_jax import params as parameters
from maskclippp_jax.generators.fcclip import FCCLIP, FCCLIPConfig
from maskclippp_jax.models.clip_convnext import ConvNeXtConfig
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.weights import model_shapes, open_clip, published, rules
from maskclippp_jax.weights.mask_decoders import (
    decoder_sizes,
    load_head,
    mask_decoder_rules,
    pixel_decoder_rules,
    three_layers_rules,
)
from maskclippp_jax.weights.rules import Rule, leading_ones, linear_rules, norm_rules
from maskclippp_jax.weights.source import Source

CLIP = "backbone.clip_model."  # before the names of the CLIP in a file
_TRUNK = "visual.trunk.st"     # stem and stages
_PREDICTOR = "sem_seg_head.predictor."
_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
# The CLIPs that published generators were made from.
_CLIPS = (("convnext_base_w_320", "laion_aesthetic_s13b_b82k_augreg"),
          ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup"))

HEAD_RULES = (
    *pixel_decoder_rules(),
    *mask_decoder_rules("query_feat"),
    *norm_rules(f"{_PREDICTOR}_mask_pooling_proj.0", "class_head/pool_norm"),
    *linear_rules(f"{_PREDICTOR}_mask_pooling_proj.1", "class_head/pool"),
    *three_layers_rules(f"{_PREDICTOR}class_embed", "class_head/embed"),
    Rule(f"{_PREDICTOR}logit_scale", "class_head/logit_scale", leading_ones(1)),
    Rule("void_embedding.weight", "void_embedding", leading_ones(1)),
    Rule(r"criterion\.empty_weight", None, why="of the loss"),
    Rule(r"backbone_t\.clip_model\..*", None, why="MAFT+'s frozen teacher, used in training"),
    Rule(r"cdt\..*", None, why="MAFT+'s tuning of texts, used in training"),
)


def trunk_rules(prefix: str, config: ConvNeXtConfig) -> tuple[Rule, ...]:
    """Stem and stages of the CLIP below a prefix; the rest of it is left out."""
    table = open_clip.convnext_rules(f"{prefix}visual.", config)
    return (*(r for r in table if r.source.startswith(f"{prefix}{_TRUNK}")),
            Rule(f"{re.escape(prefix)}(?!{re.escape(_TRUNK)}).*", None,
                 why="the CLIP's heads and text tower, which `open_clip.clip_rules` reads"))


def config_of(shapes: typing.Mapping[str, tuple], path: str, *, num_heads: int = 8,
              clip: typing.Mapping[str, tuple] | None = None) -> FCCLIPConfig:
    """The sizes of the model that a file is of.

    Args:
      shapes: of its tensors, by name.
      path: for messages.
      clip: shapes in the file of the CLIP with the trunk, if that is no published one.
      num_heads: of both decoders, which no shape tells; all published models have 8.

    Raises:
      ValueError: no FC-CLIP or MAFT+, or nothing tells one of its sizes.
    """
    found = rules.shapes_for(shapes, HEAD_RULES)
    pixels, decoder = decoder_sizes(found, shapes, path, "FC-CLIP or MAFT+", ("void_embedding",),
                                    num_heads)
    if clip is not None:
        shapes = shapes | {f"{CLIP}{name}": shape for name, shape in clip.items()}
    return FCCLIPConfig(_image_of(shapes, pixels.channels, found["void_embedding"][-1], path),
                        pixels, decoder)


def _image_of(shapes, channels: tuple[int, ...], embed_dim: int, path: str) -> ConvNeXtConfig:
    """The trunk: one of the published CLIPs, or as the blocks in the file say."""
    for image in (ConvNeXtConfig.base_w_320(), ConvNeXtConfig.large_d_320()):
        if (image.widths, image.embed_dim) == (channels, embed_dim):
            return image
    blocks = [re.match(rf"{re.escape(CLIP)}visual\.trunk\.stages\.(\d+)\.blocks\.(\d+)\.", name)
              for name in shapes]
    depths = [1 + max((int(m[2]) for m in blocks if m and int(m[1]) == i), default=-1)
              for i in range(len(channels))]
    if not all(depths):
        raise ValueError(f"{path} is of a trunk of {channels} channels that it does not hold, and "
                         "no published CLIP has such a one; give a whole file, or the CLIP as well")
    return ConvNeXtConfig(320, channels, tuple(depths), embed_dim)


def load(source: Source, config: FCCLIPConfig, path: str, clip: Source | None = None
         ) -> parameters.Tree:
    """Parameters from a file.

    Args:
      source: of `files.read`.
      config: of `config_of`.
      path: for messages.
      clip: OpenCLIP's file with the trunk, for FC-CLIP; None: the trunk is in the file itself.

    Raises:
      ValueError: the file does not fit, or has no trunk; all problems are listed.
    """
    shapes = model_shapes.of(config, lambda: abstract(config))
    if clip is None:
        if not has_trunk(source):
            raise ValueError(f"{path} has no trunk of its own, as FC-CLIP's files; give the file "
                             "of the CLIP it was made from too (OpenCLIP's convnext_base_w_320 or "
                             "convnext_large_d_320)")
        table = (*HEAD_RULES, *trunk_rules(CLIP, config.image))
        return rules.load(source, table, shapes, name=path)[0]
    trunk, _ = rules.load(clip, trunk_rules("", config.image), {"image": shapes["image"]},
                          name="the CLIP")
    return trunk | load_head(source, HEAD_RULES, shapes, path)


def has_trunk(names: typing.Iterable[str]) -> bool:
    """Whether a file holds a trunk of its own."""
    return any(name.startswith(f"{CLIP}{_TRUNK}") for name in names)


def clip_of(config: FCCLIPConfig) -> str | None:
    """Where the CLIP lies that a published generator of these sizes was made from; None: of no
    published one."""
    entries = (published.find(*names) for names in _CLIPS)
    return next((e.source for e in entries if e.image == config.image), None)


def classes_trained_on(source: Source) -> int | None:
    """How many classes a generator learnt, if its file keeps the weights of its loss."""
    weights = source.shapes.get("criterion.empty_weight")
    return weights[0] - 1 if weights else None


def has_text(names: typing.Iterable[str], prefix: str = "") -> bool:
    """Whether a file holds the text tower of a CLIP, below a prefix."""
    return f"{prefix}text_projection" in names and f"{prefix}token_embedding.weight" in names


def load_text(source: Source, path: str, prefix: str = "") -> tuple[TextConfig, parameters.Tree]:
    """The text tower of a CLIP: its sizes, which the shapes tell, and its parameters.

    Args:
      source: of `files.read`.
      path: for messages.
      prefix: of the CLIP's names.

    Raises:
      ValueError: no text tower in OpenCLIP's names, or not a whole one.
    """
    if not has_text(source, prefix):
        raise ValueError(f"{path} holds no text tower of a CLIP under OpenCLIP's names; give the "
                         "file of the CLIP that the generator was made from")
    inside = "|".join(map(re.escape, _TEXT))
    table = (*open_clip.text_rules(prefix), Rule(
        f"(?!{re.escape(prefix)}({inside})).*", None, why="not of the text tower"))
    found = rules.shapes_for(source.shapes, table)
    depth = 1 + max((int(m[1]) for p in found if (m := re.match(r"text/blocks/(\d+)/", p))),
                    default=-1)
    (vocab_size, width), (context_length, _) = (
        found["text/token_embedding"], found.get("text/position_table", (0, 0)))
    config = TextConfig(context_length, vocab_size, width, depth, max(width // 64, 1),
                        found["text/projection"][1])
    _, shapes = parameters.abstract(lambda: config.make(rngs=parameters.Keys(0)))
    return config, rules.load(source, table, {"text": shapes}, name=path)[0]["text"]


def abstract(config: FCCLIPConfig, **settings) -> tuple[typing.Callable, parameters.Tree]:
    """What `params.abstract` gives of the model; for the settings see `FCCLIP`."""
    return parameters.abstract(lambda: FCCLIP(config, rngs=parameters.Keys(0), **settings))
