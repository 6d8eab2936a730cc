"""Cases of encoders: towers, tokenizer, preprocessing, checkpoint layouts, kinds of tuning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.data.tokenizer import Tokenizer
from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    eva_vit,
    layers,
    maskclippp,
    positions,
    resample,
    text,
)
from maskclippp_jax.models.resample import Stage
from maskclippp_jax.naming import inference
from maskclippp_jax.parity.case import (
    Case,
    Check,
    channels_last,
    close,
    close_to_largest,
    cosine,
    equal,
    image_config,
    load_part,
    model_config,
    model_of,
    text_config,
)
from maskclippp_jax.training import optim
from maskclippp_jax.weights import open_clip, rules
from maskclippp_jax.weights.rules import Rule

# Tolerances of float32, twice to ten times the noise between two independent implementations.
_EMBEDDINGS = dict(atol=1e-4, rtol=1e-4)
_DENSE = dict(atol=2e-4, rtol=1e-4)
_EXACT = dict(atol=2e-5, rtol=1e-4)
_GRADIENT = 3e-4  # of the array's largest magnitude
# Least cosine of bfloat16 embeddings, and the lowest one seen (on a CPU).
_COSINE = {
    eva_vit.EvaViTConfig: 0.995,           # 0.9987
    clip_vit.ClipViTConfig: 0.997,         # 0.9994
    clip_convnext.ConvNeXtConfig: 0.9995,  # 0.9999
    clip_resnet.ResNetConfig: 0.9998,      # 0.99997
    text.TextConfig: 0.995,                # 0.9987
}

# Compiled whole: operation by operation they take longer to compile than all together.
_masks_to_grid = jax.jit(resample.masks_to_grid, static_argnums=(1, 2))
_resize_table = jax.jit(positions.resize_position_table, static_argnums=2)

_MASK_SCALE = Rule("visual_encoder.mask_logit_scale", "image/mask_logit_scale")


def image_tower(case: Case) -> list[Check]:
    """An image tower on a batch: preprocessing, masks on the grid, embeddings, gradients.

    Transformers were run image by image, so every image has its own size here; convolutional towers
    on true batches, in which the padding is a part of every image.
    """
    config, arrays, encoder = image_config(case), case.arrays, case.spec["encoder_cfg"]
    cell, is_conv = config.patch_size, case.spec["kind"] == "conv"
    build, shapes = parameters.abstract(
        lambda: config.make(dtype=case.dtype, heads="together" if is_conv else "apart",
                            rngs=parameters.Keys(0)))
    table = (*weights.image_rules("visual.", config), _MASK_SCALE)
    source = {k: x for k, x in case.weights.items() if k.startswith("visual")}
    params = load_part(source, table, shapes, "image")

    pictures, counts = arrays["in/image_sizes"], arrays["in/num_masks"]
    short = encoder["TEST_IMAGE_SIZE"] if encoder["TEST_RESIZE_TYPE"] == "short" else None
    network = inference.shorter_side_to(pictures, short)
    canvas = case.shape("out/images_processed")[2:]
    image, masks = _preprocess(arrays["in/images"], arrays["in/masks"], pictures, network, canvas)
    if is_conv:
        inside = layers.inside_canvas(jnp.asarray(network), canvas)[..., None]
        image = jnp.where(inside, image, jnp.asarray(layers.PIXEL_MEAN)[None, None, None])
        network = np.broadcast_to(np.array(canvas, np.int32), network.shape)
    grid_masks = _masks_to_grid(masks, cell, encoder["DOWNSAMPLE_METHOD"])
    grids = -(-network // cell)
    checks = [] if is_conv else [equal("grids", grids, arrays["out/grids"])]

    run = jax.jit(lambda p, *a: build(p)(*a, dense=True))
    features = run(params, image, jnp.asarray(network), grid_masks)
    got = {"m_embs": features.mask_embeddings, "i_embs": features.image_embedding}
    if case.dtype != jnp.float32:
        least = _COSINE[type(config)]
        return [cosine("m_embs", _valid(got["m_embs"], counts),
                       _valid(arrays["out/m_embs"], counts), least),
                cosine("i_embs", got["i_embs"], arrays["out/i_embs"], least)]

    if "out/images_processed" in arrays:
        normal = layers.normalize(image, jnp.asarray(network))
        want = channels_last(arrays["out/images_processed"])
        checks += [close("images_processed", normal, want, **_EXACT),
                   close("masks_processed", masks, arrays["out/masks_processed"], **_EXACT)]
    checks += [
        close("areas", grid_masks.sum(-1), arrays["out/areas"], **_EXACT),
        close("m_embs", _valid(got["m_embs"], counts), _valid(arrays["out/m_embs"], counts),
              **_EMBEDDINGS),
        close("i_embs", got["i_embs"], arrays["out/i_embs"], **_EMBEDDINGS)]
    if "out/down_masks" in arrays:
        checks.append(close("down_masks", np.reshape(grid_masks, arrays["out/down_masks"].shape),
                            arrays["out/down_masks"], **_EXACT))
    cells = tuple(side // cell for side in canvas)
    if "out/p_embs" in arrays:
        dense = np.asarray(features.patch_embeddings).reshape(len(grids), *cells, -1)
        for b, (h, w) in enumerate(grids):
            checks.append(close("p_embs", dense[b, :h, :w],
                                np.moveaxis(arrays["out/p_embs"][b], 0, -1)[:h, :w], **_DENSE))
    if "out/pos_embed" in arrays:
        table_here = (params["pool"] if "pool" in params else params)["position_table"]
        laid = _resize_table(table_here, jnp.asarray(grids), cells)
        checks.append(close("pos_embed", laid[0], arrays["out/pos_embed"], **_EXACT))
    if "out/rope_cos" in arrays:
        rotary = positions.rotary_table(jnp.asarray(grids), cells, config.width // config.num_heads,
                                     config.rotary_grid)
        for name, angles in zip(("rope_cos", "rope_sin"), rotary):
            checks.append(close(name, angles[0], arrays[f"out/{name}"], **_EXACT))
    if "in/clip_image" in arrays:
        plain = channels_last(arrays["in/clip_image"])
        size = jnp.full((len(plain), 2), config.image_size)
        embed = jax.jit(lambda p, *a: build(p)(*a).image_embedding)
        checks.append(close("clip_image_emb", embed(params, plain, size),
                            arrays["out/clip_image_emb"], **_EMBEDDINGS))
    if case.file.with_suffix(".grads.npz").exists():
        exists = np.arange(masks.shape[1]) < counts[:, None]  # [B, N]
        probe = case.gradients["probe"] * exists[..., None]
        objective = lambda p: (build(p)(image, jnp.asarray(network), grid_masks).mask_embeddings
                               * probe).sum()
        named = rules.export({"image": jax.jit(jax.grad(objective))(params)}, table)
        for key in case.gradients:
            if key.startswith("grad/"):
                checks.append(close_to_largest(key, named[key.removeprefix("grad/")],
                                               case.gradients[key], _GRADIENT))
    return checks


@functools.partial(jax.jit, static_argnames="canvas")
def _preprocess(images, masks, pictures, network, canvas):
    """Pictures [B, 3, H, W] and masks [B, N, H, W] brought to `network` sizes on a canvas."""
    def one(image, mask, picture, size):
        rows, columns = (resample.bilinear_taps(canvas[i], Stage(picture[i], size[i]))
                         for i in range(2))
        return (resample.resize_image(image, rows, columns),
                resample.resize_masks(mask, rows, columns))
    return jax.vmap(one)(channels_last(images), jnp.asarray(masks), jnp.asarray(pictures),
                         jnp.asarray(network))


def _valid(embeddings, counts) -> np.ndarray:
    """[B, N, E] -> the rows of masks that exist."""
    return np.concatenate([np.asarray(e, np.float32)[:n] for e, n in zip(embeddings, counts)])


def text_tower(case: Case) -> list[Check]:
    """A causal text tower; EVA-CLIP's and OpenCLIP's are the same function."""
    config, arrays = text_config(case), case.arrays
    prefix = "text." if any(k.startswith("text.") for k in case.weights) else ""
    source = {k: x for k, x in case.weights.items() if not k.startswith("visual.")}
    source.pop("logit_scale", None)
    build, shapes = parameters.abstract(
        lambda: text.TextTower(config, dtype=case.dtype, rngs=parameters.Keys(0)))
    params = load_part(source, open_clip.text_rules(prefix), shapes, "text")
    token_ids, checks = arrays["in/token_ids"], []
    if "prompts" in case.spec:
        token_ids = Tokenizer(config.context_length)(case.spec["prompts"])
        checks.append(equal("token_ids", token_ids, arrays["in/token_ids"]))
    embeddings = jax.jit(lambda p, ids: build(p)(ids))(params, jnp.asarray(token_ids))
    if case.dtype != jnp.float32:
        return [cosine("t_embs", embeddings, arrays["out/t_embs"], _COSINE[text.TextConfig])]
    return [*checks, close("t_embs", embeddings, arrays["out/t_embs"], **_EMBEDDINGS)]


def tokenizer(case: Case) -> list[Check]:
    token_ids = Tokenizer(case.spec["context_length"])(case.spec["prompts"])
    return [equal(name, token_ids, case.arrays[f"out/ids_{name}"])
            for name in ("open_clip", "eva_clip")]


def preprocess(case: Case) -> list[Check]:
    """Normalising, resizing by any rule, padding, down-sampling of masks by any method."""
    arrays, checks = case.arrays, []
    for step in case.spec["steps"]:
        settings, name = step["encoder_cfg"], step["name"]
        want = arrays[f"out/{name}/images"]
        for b, (image, mask) in enumerate(zip(step["images"], step["masks"])):
            image, mask = arrays[f"in/{image}"], arrays[f"in/{mask}"]
            picture = np.array([image.shape[1:]], np.int32)
            network, scale = _network_size(picture, settings)
            got, masks = _preprocess(image[None], mask[None], picture, network, want.shape[2:])
            if scale is not None:
                taps = [resample.scaled_taps(n, side, scale)
                        for n, side in zip(want.shape[2:], picture[0])]
                got = resample.resize_image(channels_last(image), *taps)[None]
            got = layers.normalize(got, jnp.asarray(network))
            checks += [equal(f"{name}/sizes", network[0], arrays[f"out/{name}/sizes"][b]),
                       close(f"{name}/images", got[0], channels_last(want[b]), **_EXACT),
                       close(f"{name}/masks{b}", masks[0], arrays[f"out/{name}/masks{b}"],
                             **_EXACT)]
    masks = jnp.asarray(arrays["in/d_masks"])
    resize = jax.jit(resample.masks_to_size, static_argnums=(1, 2))
    for key in arrays:
        if key.startswith("out/down/"):
            _, _, method, size = key.split("/")
            got = resize(masks, tuple(map(int, size.split("x"))), method)
            checks.append(equal(key, got, arrays[key]) if method in ("max", "nearest")
                          else close(key, got, arrays[key], **_EXACT))
    return checks


def _network_size(picture: np.ndarray, settings: dict) -> tuple[np.ndarray, float | None]:
    """The size [1, 2] the reference resizes a picture to, and its scale if that is the step."""
    match settings["TEST_RESIZE_TYPE"]:
        case "none":
            return picture, None
        case "short":
            return inference.shorter_side_to(picture, settings["TEST_IMAGE_SIZE"]), None
        case "square":
            return np.full((1, 2), settings["TEST_IMAGE_SIZE"], np.int32), None
        case "rel":
            scale = settings["TEST_IMAGE_SCALE"]
            return np.floor(picture * scale).astype(np.int32), scale
    raise ValueError(f"a case asks for the resize {settings['TEST_RESIZE_TYPE']!r}")


def checkpoint_layouts(case: Case) -> list[Check]:
    """Published files, read without torch: EVA-CLIP, MaskCLIP++, and OpenAI's archive."""
    config, arrays, checks = model_config(case), case.arrays, []
    image, masks = channels_last(arrays["in/images"]), jnp.asarray(arrays["in/masks"])
    grid_masks = _masks_to_grid(masks, config.image.patch_size)
    build, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(config, dtype=case.dtype, rngs=parameters.Keys(0)))
    embed = jax.jit(lambda p, ids: (
        build(p).encode_image(image, jnp.asarray([image.shape[1:3]]), grid_masks).mask_embeddings,
        build(p).encode_text(ids)))
    for kind in ("pretrained", "finetuned"):
        m_embs, t_embs = embed(_read(case, kind, config, shapes),
                               jnp.asarray(arrays["in/token_ids"]))
        checks += [_embedding(case, f"{kind}/m_embs", m_embs, type(config.image)),
                   _embedding(case, f"{kind}/t_embs", t_embs, text.TextConfig)]

    config = _openai_config(case)
    image = channels_last(arrays["in/openai_image"])
    size = jnp.full((len(image), 2), config.image.image_size)
    build, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(config, dtype=case.dtype, rngs=parameters.Keys(0)))
    embed = jax.jit(lambda p, ids: (build(p).encode_image(image, size).image_embedding,
                                    build(p).encode_text(ids)))
    params = _read(case, "openai", config, shapes)
    image_emb, text_emb = embed(params, jnp.asarray(arrays["in/openai_ids"]))
    return [*checks,
            equal("openai/logit_scale", params["logit_scale"], arrays["out/openai/logit_scale"]),
            _embedding(case, "openai/image_emb", image_emb, type(config.image)),
            _embedding(case, "openai/text_emb", text_emb, text.TextConfig)]


def _openai_config(case: Case) -> maskclippp.MaskCLIPppConfig:
    sizes = case.spec["openai_cfg"]
    vision, words = sizes["vision_cfg"], sizes["text_cfg"]
    return maskclippp.MaskCLIPppConfig(
        clip_vit.ClipViTConfig(
            vision["image_size"], vision["patch_size"], vision["width"], vision["layers"],
            vision["width"] // vision["head_width"], 4 * vision["width"], sizes["embed_dim"],
            mask_layers=1, quick_gelu=True,
            pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3),  # the image is normalised already
        text.TextConfig(words["context_length"], words["vocab_size"], words["width"],
                        words["layers"], words["heads"], sizes["embed_dim"], quick_gelu=True),
        similarity=None)


def _read(case: Case, kind: str, config: maskclippp.MaskCLIPppConfig, shapes) -> parameters.Tree:
    """Parameters of one of a case's files, by the ordinary reader.

    The similarity head, which these cases do not use, is left out.
    """
    file = str(case.file.with_name(case.spec["files"][kind]))
    source = {k: x for k, x in weights.read(file).items() if not k.startswith("psm.")}
    table = weights.rules_for(weights.layout_of(source, file), config)
    params, missing = rules.load(source, table, shapes, absent=weights.ABSENT, name=file)
    if missing:
        scale = jnp.full((config.image.mask_layers, config.image.num_heads),
                         case.spec["encoder_cfg"]["MASK_LOGIT_SCALE"], jnp.float32)
        params = parameters.combine(params, {"image": {"mask_logit_scale": scale}})
    return params


def _embedding(case: Case, name: str, got, kind: type) -> Check:
    want = case.arrays[f"out/{name}"]
    if case.dtype == jnp.float32:
        return close(name, got, want, **_EMBEDDINGS)
    return cosine(name, got, want, _COSINE[kind])


def finetune_types(case: Case) -> list[Check]:
    """Which parameters each kind of tuning trains, of every tower."""
    checks = []
    for tower, kinds in case.spec["table"].items():
        is_text = tower.startswith("text")
        prefix = "text_encoder." if is_text else "visual_encoder."
        for kind, listed in kinds.items():
            names = {want: [f"{prefix}{name}" for name in listed[want]]
                     for want in ("trainable", "frozen")}
            model = model_of(names["trainable"] + names["frozen"])
            table = weights.rules_for("maskclippp", model)
            is_trainable = optim.trainable_predicate(
                "none" if is_text else kind, kind if is_text else "none", model)
            # A name without a path is wrong in either list.
            wrong = [name for want, listed_names in names.items() for name in listed_names
                     if {is_trainable(p) for p in rules.paths_for(name, table)}
                     != {want == "trainable"}]
            checks.append(equal(f"{tower}/{kind}", wrong, []))
    return checks
