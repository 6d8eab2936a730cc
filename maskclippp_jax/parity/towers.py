"""Cases of PE-Core, TIPS and dino.txt: their authors' results, masks as this project defines them.

A case has pictures of the size the tower was made for and of another ("_wide"), masks on the patch
grid, and one model's weights in several layouts. Every stored result is compared, at the tolerance
that lies beside it, but those of other implementations that this project does not offer
(`_NOT_OFFERED`).
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.data.tokenizer import TIPSTokenizer, Tokenizer, lower_ascii
from maskclippp_jax.models import dinotxt, layers, maskclippp, pe, positions, similarity, tips
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.parity import windows
from maskclippp_jax.parity.case import (
    Case,
    Check,
    channels_last,
    close,
    close_to_largest,
    cosine,
    equal,
    miss,
    same_parameters,
)
from maskclippp_jax.weights import pe as pe_files, published, rules, tips as tips_files
from maskclippp_jax.weights.rules import Rule

_GRADIENT = 3e-4  # of the array's largest magnitude
_COSINE = 0.995   # least of bfloat16 arithmetic, as for EVA's cases
# timm resizes tables and rotary positions of PE-Core by other rules than its authors.
_NOT_OFFERED = {"timm_pos_embed_wide", "timm_image_emb_wide"}
_LIMIT = -30.0  # logarithm of a factor that leaves nothing of the values of a mask
_MASK_SCALE = Rule("mask_logit_scale", "image/mask_logit_scale")


@dataclasses.dataclass(frozen=True)
class _Model:
    """A case's model with its weights; `params` holds the stored scale of the mask bias."""

    case: Case
    config: maskclippp.MaskCLIPppConfig
    params: parameters.Tree

    def arrays(self, name: str, wide: str) -> np.ndarray:
        return self.case.arrays[f"in/{name}{wide}"]

    def picture(self, wide: str) -> tuple[jax.Array, jax.Array]:
        """Pictures [B, H, W, 3] and their true sizes [B, 2]."""
        image = channels_last(self.arrays("images", wide))
        return image, jnp.tile(jnp.array(image.shape[1:3]), (len(image), 1))

    def build(self, params=None, **changes):
        """The model, inside `jit`; `changes` are of the image tower's sizes."""
        config = dataclasses.replace(
            self.config, image=dataclasses.replace(self.config.image, **changes))
        return _abstract(config, self.case.dtype)[0](self.params if params is None else params)

    def embed(self, params, wide: str, **changes) -> layers.ImageFeatures:
        return self.build(params, **changes).encode_image(
            *self.picture(wide), jnp.asarray(self.arrays("masks", wide)), dense=True)


@functools.lru_cache
def _abstract(config: maskclippp.MaskCLIPppConfig, dtype) -> tuple[typing.Callable, typing.Any]:
    return parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        config, dtype=dtype, heads="together", rngs=parameters.Keys(0)))


def _load(case: Case, config: maskclippp.MaskCLIPppConfig, file: str) -> parameters.Tree:
    """Parameters of a stored file by the ordinary reader, with the stored scale of the mask bias.
    """
    _, shapes = _abstract(config, case.dtype)
    paths = ",".join(str(case.file.with_name(part)) for part in file.split(","))
    params, _ = weights.load_weights(paths, config, shapes)
    scale = {"image": {"mask_logit_scale": case.arrays["in/mask_logit_scale"]}}
    return parameters.combine(params, scale)


def _written_again(label: str, model: _Model, layout: str,
                   stored: typing.Mapping[str, np.ndarray]) -> Check:
    """What is written in a file's layout is what the file holds."""
    named = weights.export(model.params, model.config, layout)
    return equal(f"{label}: written", sorted(
        name for name in stored if name in named and np.array_equal(named[name], stored[name])),
        sorted(stored))


def _tokens(tower, image_tokens, rotary, valid) -> jax.Array:
    """Tokens after every block: [B, blocks, P+L, D]."""
    found = []
    for block in tower.blocks:
        image_tokens, _ = block(image_tokens, rotary, valid, None, None, None)
        found.append(image_tokens)
    return jnp.stack(found, 1)


def _stored(case: Case, got: dict) -> dict:
    """What a case has stored results of; the rest need not be computed."""
    names = {key.removeprefix("out/") for key in case.arrays}
    return {name: x for name, x in got.items() if name.removeprefix("folded_") in names}


def _compare(case: Case, got: typing.Mapping[str, typing.Any]) -> list[Check]:
    """Every stored result, with the one found here."""
    checks = []
    for key, facts in case.spec["arrays"].items():
        name = key.removeprefix("out/")
        if facts["role"] == "output" and name not in _NOT_OFFERED:
            checks.append(close(name, got[name], case.arrays[key], **facts["tolerance"])
                          if name in got else miss(f"{name} (not computed)"))
    return checks


def _directions(case: Case, got: typing.Mapping[str, typing.Any], names) -> list[Check]:
    """Of bfloat16."""
    return [cosine(name, np.asarray(got[name], np.float32), case.arrays[f"out/{name}"], _COSINE)
            for name in names]


def _gradients(model: _Model, table: tuple[Rule, ...], renamed: typing.Callable = str
               ) -> list[Check]:
    """Gradients of sum(m_embs * probe), under the names of a layout."""
    case = model.case
    probe = case.gradients["probe"]

    def objective(image):
        params = {**model.params, "image": image}
        return (model.embed(params, "").mask_embeddings * probe).sum()

    found = {"image": jax.jit(jax.grad(objective))(model.params["image"])}
    if isinstance(model.config.image, pe.PEConfig):
        found["image"]["head"].pop("bias")  # which the authors' model has not
    named = rules.export(found, (*table, _MASK_SCALE))
    return [close_to_largest(key, named[renamed(key.removeprefix("grad/"))], case.gradients[key],
                             _GRADIENT) for key in case.gradients if key.startswith("grad/")]


def _logits(model: maskclippp.MaskCLIPpp, images, texts) -> jax.Array:
    """[B, E], [T, E] -> [B, T], as masks are classified."""
    features = layers.ImageFeatures(images[:, None], None, None, None)
    return model.classify(features, similarity.unit(texts)[:, None])[:, 0]


# ---- PE-Core ------------------------------------------------------------------------------------


def pe_core(case: Case) -> list[Check]:
    """A PE-Core in both layouts."""
    c, words = case.spec["config"], case.spec["config"]["text"]
    config = maskclippp.MaskCLIPppConfig.of_uncut(
        pe.PEConfig(c["image_size"], c["patch"], c["width"], c["depth"], c["heads"],
                    c["mlp_hidden"], c["embed"], has_class_token=c["class_token"]),
        TextConfig(words["context_length"], words["vocab_size"], words["width"], words["layers"],
                   words["heads"], c["embed"]))
    files = (case.spec["weights"], *case.spec["other_weights"])
    loaded = [_load(case, config, file) for file in files]
    model = _Model(case, config, loaded[0])

    @jax.jit
    def run(params):
        texts = model.build(params).encode_text(jnp.asarray(case.arrays["in/token_ids"]))
        got = {"text_emb": texts, "timm_text_emb": texts}
        for wide in ("", "_wide"):
            got |= {f"{k}{wide}": x for k, x in _pe_results(model, params, wide).items()}
        return _stored(case, got | {
            "timm_image_emb": got["image_emb"],
            "logits": _logits(model.build(params), got["image_emb"], texts)})

    got = run(model.params)
    if case.dtype != jnp.float32:
        return _directions(case, got, ("image_emb", "text_emb", "m_embs"))
    stored = [weights.read(str(case.file.with_name(file))) for file in files]
    return [*_compare(case, got),
            *(same_parameters(file, params, loaded[0])
              for file, params in zip(files[1:], loaded[1:])),
            *(_written_again(file, model, weights.layout_of(source, file), source)
              for file, source in zip(files, stored)),
            *_gradients(model, pe_files.image_rules("visual.", config.image))]


def _pe_results(model: _Model, params, wide: str) -> dict:
    c, (image, sizes) = model.config.image, model.picture(wide)
    tower = model.build(params).image
    grid = layers.lay_grid(image, sizes, None, c.patch_size)
    rotary = pe.rotary_table(grid.size, grid.canvas, c.width // c.num_heads)
    tokens = _tokens(tower, tower.embed(image, sizes, grid), rotary, grid.valid)
    resize = positions.resize_position_table if c.has_class_token else positions.resize_table
    features = model.embed(params, wide)
    limit = parameters.combine(params, {"image": {"mask_logit_scale": jnp.full_like(
        params["image"]["mask_logit_scale"], _LIMIT)}})
    return {"tokens": tokens, "features": tower.norm(tokens[:, -1]),
            "pos_embed": resize(tower.position_table[...], grid.size[:1], grid.canvas,
                                positions.half_pixel_matrix)[0],
            "image_emb": features.image_embedding, "value_patches": features.patch_embeddings,
            "m_embs": features.mask_embeddings,
            "m_embs_seen": model.embed(params, wide, prefix_visible=True).mask_embeddings,
            # The reference's binary mask must not be empty, as the last one is.
            "m_embs_hard": model.embed(limit, wide).mask_embeddings[:, :-1]}


# ---- TIPS ---------------------------------------------------------------------------------------


def tips_model(case: Case) -> list[Check]:
    """A TIPS in its three layouts, and in the flavour of the authors' JAX code."""
    c = case.spec["config"]
    config = maskclippp.MaskCLIPppConfig.of_uncut(
        tips.TIPSConfig(c["image_size"], c["patch"], c["width"], c["depth"], c["heads"],
                        c["mlp_hidden"], swiglu=c["swiglu"], mask_layers=c["neck_layers"]),
        tips.TIPSTextConfig(c["length"], c["vocab"], c["width"], c["text_layers"],
                            c["text_heads"], c["text_mlp"]))
    vision, words, scenic_vision, scenic_words = (
        f"{case.name}.{part}.npz" for part in ("vision", "text", "scenic_vision", "scenic_text"))
    model = _Model(case, config, _load(case, config, f"{vision},{words}"))
    ids = jnp.asarray(case.arrays["in/token_ids"])
    flavour = dict(exact_gelu=False)
    scenic = _Model(case, dataclasses.replace(config, text=dataclasses.replace(
        config.text, norm_epsilon=1e-6)), _load(case, config, f"{scenic_vision},{scenic_words}"))

    @jax.jit
    def run(params, scenic_params):
        texts = model.build(params).encode_text(ids)
        got = {"text_emb": texts, "hub_text_emb": texts}
        got["scenic_text_emb"] = scenic.build(scenic_params).encode_text(ids)
        for wide in ("", "_wide"):
            found = _tips_results(model, params, wide)
            for name, x in _tips_tokens(scenic, scenic_params, wide, **flavour).items():
                found |= {f"scenic_{name}": x} if f"out/scenic_{name}" in case.arrays else {}
            # The function is the same with the factors of blocks in their matrices.
            found |= {f"folded_{k}": x for k, x in _tips_tokens(
                scenic, scenic_params, wide).items()}
            got |= {f"{k}{wide}": x for k, x in found.items()}
        for k in (1, 2):
            got[f"logits{k}"] = _logits(model.build(params), got[f"cls{k}"], texts)
        return _stored(case, got | {"hub_logits": got["logits1"], "hub_cls2": got["cls2"]})

    got = run(model.params, scenic.params)
    if case.dtype != jnp.float32:
        return _directions(case, got, ("cls1", "text_emb", "m_embs1"))
    dense = jax.jit(lambda params, image: model.build(params).encode_image(
        image, jnp.array([image.shape[1:3]]), dense=True).patch_embeddings)
    if "out/seg_whole" in case.arrays:
        got |= windows.segment(case, lambda image: dense(model.params, image))
    hub = case.weights
    folded = [close(f"folded_{name}{wide}", got[f"folded_{name}{wide}"],
                    case.arrays[f"out/{name}{wide}"],
                    **case.spec["arrays"][f"out/{name}{wide}"]["tolerance"])
              for wide in ("", "_wide") for name in ("cls1", "cls2", "patches")
              if f"out/{name}{wide}" in case.arrays]
    return [*_compare(case, got), *folded,
            same_parameters(case.spec["weights"], _hub_params(case, config, hub), model.params),
            _written_again(case.spec["weights"], model, "tips", {
                k: x for k, x in hub.items() if k != "vision_encoder.mask_token"}),
            *_gradients(model, tips_files.hub_rules())]


def _hub_params(case: Case, config, hub) -> parameters.Tree:
    """Of the hub's file, which tells no temperature, as if its config.json lay beside it."""
    _, shapes = _abstract(config, case.dtype)
    temperature = np.float32(case.spec["config"]["temperature"])
    params, _ = rules.load({**hub, "temperature": temperature}, tips_files.hub_rules(), shapes,
                           absent=weights.ABSENT)
    return parameters.combine(params, {"image": {
        "mask_logit_scale": case.arrays["in/mask_logit_scale"]}})


def _tips_tokens(model: _Model, params, wide: str, **flavour) -> dict:
    """The three kinds of tokens after the last norm."""
    c, (image, sizes) = model.config.image, model.picture(wide)
    tower = model.build(params, **flavour).image
    grid = layers.lay_grid(image, sizes, None, c.patch_size)
    last = tower.norm(_tokens(tower, tower.embed(image, sizes, grid), None, grid.valid)[:, -1])
    return {"cls1": last[:, 0], "cls2": last[:, 1], "patches": last[:, 2:]}


def _tips_results(model: _Model, params, wide: str) -> dict:
    c, (image, sizes) = model.config.image, model.picture(wide)
    tower = model.build(params).image
    grid = layers.lay_grid(image, sizes, None, c.patch_size)
    embedded = tower.embed(image, sizes, grid)
    tokens = _tokens(tower, embedded, None, grid.valid)
    got = {"embedded": embedded, "tokens": tokens, "patches": tower.norm(tokens[:, -1, 2:]),
           "pos_embed": positions.resize_position_table(
               tower.position_table[...], grid.size[:1], grid.canvas,
               positions.antialiased_matrix)[0]}
    for k in (1, 2):
        features = model.embed(params, wide, class_token=k)
        got |= {f"cls{k}": features.image_embedding, f"m_embs{k}": features.mask_embeddings,
                "value_patches": features.patch_embeddings,
                f"m_embs{k}_seen": model.embed(
                    params, wide, class_token=k, prefix_visible=True).mask_embeddings}
    return got


# ---- dino.txt -----------------------------------------------------------------------------------


def dino_model(case: Case) -> list[Check]:
    """A dino.txt of its two files."""
    c, words = case.spec["config"], case.spec["config"]["text"]
    config = maskclippp.MaskCLIPppConfig.of_uncut(
        dinotxt.DinoTxtConfig(
            c["image_size"], c["patch"], c["width"], c["depth"], c["heads"], c["mlp_hidden"],
            c["head_mlp_hidden"], head_depth=c["head_blocks"], num_registers=c["registers"],
            mask_layers=c["neck_layers"]),
        TextConfig(words["context_length"], words["vocab_size"], words["dim"],
                   words["num_layers"], words["num_heads"], c["embed"], qkv_bias=False))
    backbone, head = f"{case.name}.backbone.safetensors", case.spec["weights"]
    model = _Model(case, config, _load(case, config, f"{backbone},{head}"))
    ids = jnp.asarray(case.arrays["in/token_ids"])

    @jax.jit
    def run(params):
        texts = model.build(params).encode_text(ids)
        got = {"text_emb": texts}
        for wide in ("", "_wide"):
            got |= {f"{k}{wide}": x for k, x in _dino_results(model, params, wide).items()}
        width = config.image.width
        return _stored(case, got | {
            "logits": _logits(model.build(params), got["image_emb"], texts),
            "dense_cosines": jnp.einsum("bld,td->blt", similarity.unit(got["patches"]),
                                        similarity.unit(texts[:, width:]), precision="highest")})

    got = run(model.params)
    if case.dtype != jnp.float32:
        return _directions(case, got, ("image_emb", "text_emb", "m_embs"))
    both = weights.read(f"{case.file.with_name(backbone)},{case.file.with_name(head)}")
    table = weights.rules_for("dinotxt", config)
    # All but what is left out, and the biases of keys, which may hold anything.
    stored = {name: np.asarray(both[name]) for name in both
              if rules.paths_for(name, table) and not name.endswith("attn.qkv.bias")}
    return [*_compare(case, got), _written_again(head, model, "dinotxt", stored),
            *_gradients(model, table, lambda name: name.removeprefix("visual_model.backbone."))]


def _dino_results(model: _Model, params, wide: str) -> dict:
    c, (image, sizes) = model.config.image, model.picture(wide)
    tower, prefix = model.build(params).image, 1 + model.config.image.num_registers
    grid = layers.lay_grid(image, sizes, None, c.patch_size)
    rotary = dinotxt.rotary_table(grid.size, grid.canvas, c.width // c.num_heads)
    tokens = _tokens(tower, tower.embed(image, sizes), rotary, grid.valid)
    last, features = tower.norm(tokens[:, -1]), model.embed(params, wide)
    return {"tokens": tokens, "backbone_cls": last[:, 0], "backbone_registers": last[:, 1:prefix],
            "backbone_patches": last[:, prefix:], "rope_cos": rotary[0][0],
            "rope_sin": rotary[1][0], "image_emb": features.image_embedding,
            "patches": features.patch_embeddings[..., c.width:],
            "m_embs": features.mask_embeddings,
            "m_embs_seen": model.embed(params, wide, prefix_visible=True).mask_embeddings}


# ---- Tokenizers, and the published models -------------------------------------------------------


def pe_tokenizer(case: Case) -> list[Check]:
    """CLIP's tokenizer with the contexts of PE-Core."""
    return [equal(f"ids_{length}", Tokenizer(length)(case.spec["prompts"]),
                  case.arrays[f"out/ids_{length}"]) for length in case.spec["context_lengths"]]


def tips_tokenizer(case: Case) -> list[Check]:
    """The tokenizer of TIPS, text by text."""
    spec, file = case.spec, str(case.file.with_name("tips.model"))
    checks = [equal("lowered", list(map(lower_ascii, spec["texts"])), spec["lowered"])]
    for length, wanted in spec["lengths"].items():
        ids = TIPSTokenizer(file, int(length))(spec["texts"])
        checks.append(equal(f"ids_{length}", ids, wanted))
        if "paddings" in spec:
            checks.append(equal(f"paddings_{length}", (ids == 0).astype(int),
                                spec["paddings"][length]))
    return checks


def pe_published_shapes(case: Case) -> list[Check]:
    checks = []
    for name, spec in case.spec["models"].items():
        checks += _published(name, "timm", spec["shapes"], {
            "image/": spec["params_image"], "text/": spec["params_text"]})
    return checks


def tips_published_shapes(case: Case) -> list[Check]:
    checks = []
    for training, spec in case.spec["models"].items():
        entry = next(e for e in published.MODELS if e.training == training)
        checks += _published(entry.name, "tips_torch", spec["vision"] | spec["text"], {
            # We drop the token that stands for hidden patches.
            "image/": spec["params_image"] - entry.image.width, "text/": spec["params_text"]})
    return checks


def dino_published_shapes(case: Case) -> list[Check]:
    backbone, rest = case.spec["models"].values()
    entry = next(e for e in published.MODELS if isinstance(e.image, dinotxt.DinoTxtConfig))
    # We drop that token, and the biases of keys, which are multiplied by 0.
    dropped = entry.image.width * (1 + entry.image.depth)
    return _published(entry.name, "dinotxt", backbone["shapes"] | rest["shapes"], {
        "image/": rest["params_backbone"] + rest["params_head"] - dropped,
        "image/head/": rest["params_head"], "text/": rest["params_text"]})


def _published(name: str, layout: str, stored: typing.Mapping[str, typing.Sequence[int]],
               wanted_counts: dict[str, int]) -> list[Check]:
    """Names and shapes of a published file; counts of parameters; that it is recognised."""
    model = published.find_by_name(name).model
    _, laid = _abstract(model, jnp.float32)
    wanted = {path: x.shape for path, x in parameters.flatten(laid).items()
              if not path.startswith(weights.ABSENT)}
    shapes = {key: tuple(shape) for key, shape in stored.items()}
    found = rules.shapes_for(shapes, weights.rules_for(layout, model))
    counts = {part: sum(math.prod(x) for path, x in wanted.items() if path.startswith(part))
              for part in wanted_counts}
    names = published.looks_like(
        shapes, lambda candidate: weights.rules_for(layout, candidate), weights.ABSENT)
    return [equal(f"{name}: shapes", found == wanted, True),
            equal(f"{name}: parameters", list(counts.values()), list(wanted_counts.values())),
            equal(f"{name}: recognised", names, [name])]
