"""Mask generators of real size with random weights on one picture: python -m benchmarks.generators

From the picture in memory to masks and classes in memory. Where transformers is installed (pip
install torch transformers) the same network runs beside ours in eager PyTorch, each in a process of
its own, taking turns, with the same weights, and what both find is compared. FC-CLIP, which
transformers lacks, stands beside its Mask2Former on a ConvNeXt, without that one's last norms;
masks are the same then, and classes, which each tells in its own way, are not compared. "cores s"
is the time of all cores together, which other programs on the machine disturb little; the memory is
the peak of the whole process, with libraries and weights.
"""

import functools
import importlib.util
import json
import statistics
import tempfile
import typing

import jax
import numpy as np
from absl import app, flags
from rich.table import Table
from safetensors.numpy import save_file

from benchmarks import turns
from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.data import generator_input
from maskclippp_jax.data.generator_input import Way
from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.generators.fcclip import FCCLIPConfig
from maskclippp_jax.generators.mask2former import PIXEL_MEAN, PIXEL_STD
from maskclippp_jax.models import layers
from maskclippp_jax.naming import generator
from maskclippp_jax.runtime import console
from maskclippp_jax.weights import eomt, mask2former, published_generators, rules

SIZE = flags.DEFINE_string("size", "512x683", "height x width of the picture")
MODELS = flags.DEFINE_list("models", ["eomt-s-640", "eomt-b-640", "eomt-l-640", "mask2former-l",
                                      "fcclip-l"], "names as in `maskclippp convert --list`")
DTYPE = flags.DEFINE_enum("dtype", "float32", list(configuration.DTYPES), "of our arithmetic")
REPEATS = flags.DEFINE_integer("repeats", 5, "turns of each; the median counts", lower_bound=1)


def main(argv):
    del argv
    size = tuple(map(int, SIZE.value.split("x")))
    table = Table(title=f"{size[0]} x {size[1]}, {DTYPE.value}, on {jax.devices()[0].device_kind}; "
                        "median (least ... most)")
    table.add_column("model")
    columns = ("s", "cores s", "peak MB")
    for column in ("M parameters", *columns, *(f"{c}, PyTorch" for c in columns), "ratio of cores",
                   "largest difference"):
        table.add_column(column, justify="right")
    for name in MODELS.value:
        found = compare(name, size, DTYPE.value, REPEATS.value)
        print(json.dumps(dict(model=name, **found)), flush=True)
        table.add_row(name, *cells(found))
    console.show(table)


def compare(name: str, size: tuple[int, int], dtype: str, repeats: int) -> dict:
    """Both by turns; a row of the table."""
    ours = functools.partial(load_ours, dtype=dtype)
    sides = {"ours": functools.partial(prepare, ours, name, size)}
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        sides["theirs"] = functools.partial(prepare, load_theirs, name, size)
    found = turns.take(sides, repeats)
    config = published_generators.find(name).config
    result = {"M parameters": parameters.count(generator.abstract(config)[1]) / 1e6}
    for side, one in found.items():
        result[side] = dict(s=one.wall, cores=one.cores, peak_mb=one.peak_mb)
    if len(found) == 2:
        common = 1 if name.startswith(("fcclip", "maftp")) else 2  # masks, and classes
        result["difference"] = turns.difference(*(
            one._replace(answer=one.answer[:common]) for one in found.values()))
    return result


def cells(found: dict) -> list[str]:
    row = [f"{found['M parameters']:.1f}"]
    for side in ("ours", "theirs"):
        one = found.get(side)
        row += [turns.spread(one["s"]), turns.spread(one["cores"]),
                f"{one['peak_mb']:.0f}"] if one else [""] * 3
    of_cores = [statistics.median(found[side]["cores"]) for side in ("theirs", "ours")
                if side in found]
    return [*row, f"{of_cores[0] / of_cores[1]:.2f}" if len(of_cores) == 2 else "",
            f"{found['difference']:.1e}" if "difference" in found else ""]


def prepare(load, name: str, size: tuple[int, int]) -> typing.Callable[[], list[np.ndarray]]:
    """One side, from a picture in memory to masks and classes in memory."""
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    config = published_generators.find(name).config
    way = generator.way_of(size, config, generator.PREPARATIONS[type(config)], name)
    return functools.partial(load(config, way), image)


def draw(config) -> parameters.Tree:
    """Random weights, the same for both sides."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) / 50,
                        generator.abstract(config)[1])


def load_ours(config, way: Way, dtype: str):
    params = jax.device_put(draw(config))
    program = generator.make_program(config, dtype=jax.numpy.dtype(dtype))
    sizes = [np.array([x], np.int32) for x in (way.loaded, way.resized)]

    def run(image):
        entered = generator_input.enter(image, way)
        return jax.device_get(program(params, entered[None], *sizes, canvas=way.padded))

    return run


def load_theirs(config, way: Way):
    """The model of transformers, and pictures as our loader resizes them."""
    import torch

    model = read_theirs(config).eval().to(memory_format=torch.channels_last)
    of_clip = isinstance(config, FCCLIPConfig)
    mean, std = (np.array(x, np.float32) for x in (
        (layers.PIXEL_MEAN, layers.PIXEL_STD) if of_clip else (PIXEL_MEAN, PIXEL_STD)))

    def run(image):
        entered = generator_input.enter(image, way).astype(np.float32)
        pixels = (entered - mean) / std
        if not isinstance(config, EoMTConfig):  # whose black border is seen
            pixels[way.resized[0]:], pixels[:, way.resized[1]:] = 0, 0
        with torch.inference_mode():
            found = model(pixel_values=torch.from_numpy(pixels.transpose(2, 0, 1)[None]))
        return [found.masks_queries_logits.numpy(), found.class_queries_logits.numpy()]

    return run


def make_theirs(config):
    """An untrained model of transformers with the sizes of ours."""
    import transformers as t

    if isinstance(config, EoMTConfig):
        return t.EomtForUniversalSegmentation(t.EomtConfig(
            hidden_size=config.width, num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads, mlp_ratio=config.mlp_width // config.width,
            image_size=config.image_size[0], patch_size=config.patch_size,
            num_blocks=config.query_blocks, num_queries=config.num_queries,
            num_labels=config.num_classes, use_swiglu_ffn=config.swiglu))
    stages = dict(out_features=[f"stage{i}" for i in range(1, 5)])
    if isinstance(config, FCCLIPConfig):
        trunk = t.ConvNextConfig(depths=list(config.image.depths),
                                 hidden_sizes=list(config.image.widths), **stages)
    else:
        c = config.image
        trunk = t.SwinConfig(image_size=384, embed_dim=c.width, depths=list(c.depths),
                             num_heads=list(c.num_heads), window_size=c.window, **stages)
    return t.Mask2FormerForUniversalSegmentation(t.Mask2FormerConfig(
        backbone_config=trunk, feature_size=256, mask_feature_size=256, hidden_dim=256,
        num_labels=133, num_queries=config.decoder.num_queries))


def read_theirs(config):
    """The same with our weights, by way of a file, whose names transformers changes in reading."""
    import torch

    weights = draw(config)
    if isinstance(config, EoMTConfig):
        table = eomt.transformers_rules(swiglu=config.swiglu)
    elif isinstance(config, FCCLIPConfig):
        table = (*convnext_rules(), *mask2former.transformers_decoder_rules())
        weights = {part: weights[part] for part in ("image", "pixel_decoder", "decoder")}
    else:
        table = mask2former.transformers_rules()
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        model = make_theirs(config)
        model.config.save_pretrained(folder)
        save_file(rules.export(weights, table), f"{folder}/model.safetensors")
        with torch.device("cpu"):
            model, said = type(model).from_pretrained(folder, output_loading_info=True)
    unused = ["attn_mask_probs", "criterion.empty_weight", ".swin.layernorm."]
    if isinstance(config, FCCLIPConfig):
        unused += ["hidden_states_norms.", "class_predictor."]
    lacking = [k for k in said["missing_keys"] if not any(u in k for u in unused)]
    if lacking or said["unexpected_keys"]:
        raise ValueError(f"transformers lacks {lacking}, does not know {said['unexpected_keys']}")
    if isinstance(config, EoMTConfig):
        model.attn_mask_probs.zero_()  # as the published ones have it
    if isinstance(config, FCCLIPConfig):
        norms = model.model.pixel_level_module.encoder.hidden_states_norms
        for stage in norms:
            norms[stage] = torch.nn.Identity()
    return model


def convnext_rules() -> tuple[rules.Rule, ...]:
    """The trunk of FC-CLIP under the names of transformers."""
    prefix = mask2former.TRANSFORMERS
    stage = f"{prefix}encoder.stages.{{i}}.", "image/stages/{i}/"
    block = f"{stage[0]}layers.{{j}}.", f"{stage[1]}blocks/{{j}}"
    return (
        *rules.conv_rules(f"{prefix}embeddings.patch_embeddings", "image/stem/conv"),
        *rules.norm_rules(f"{prefix}embeddings.layernorm", "image/stem/norm"),
        *rules.norm_rules(f"{stage[0]}downsampling_layer.0", f"{stage[1]}downsample/norm"),
        *rules.conv_rules(f"{stage[0]}downsampling_layer.1", f"{stage[1]}downsample/conv"),
        rules.Rule(f"{block[0]}layer_scale_parameter", f"{block[1]}/gamma"),
        *rules.conv_rules(f"{block[0]}dwconv", block[1]),
        *rules.norm_rules(f"{block[0]}layernorm", f"{block[1]}/norm"),
        *rules.linear_rules(f"{block[0]}pwconv1", f"{block[1]}/mlp/fc1"),
        *rules.linear_rules(f"{block[0]}pwconv2", f"{block[1]}/mlp/fc2"),
    )


if __name__ == "__main__":
    app.run(main)
