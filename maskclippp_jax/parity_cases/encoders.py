"""Cases of encoders: towers, tokenizer, preprocessing, checkpoint layouts, kinds of tuning."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax import inference, optim, weights
from maskclippp_jax import params as parameters
from maskclippp_jax.data.tokenizer import Tokenizer
from maskclippp_jax.models import eva_vit, layers, maskclippp, resample, text
from maskclippp_jax.models.resample import Stage
from maskclippp_jax.parity_cases.case import (
    Absent, Case, Check, NotBuilt, channels_last, close, close_to_largest, cosine, equal, load_part,
    model_config, text_config)
from maskclippp_jax.weights import eva_clip, rules
from maskclippp_jax.weights.rules import Rule

# Tolerances of float32, twice to ten times the noise between two independent implementations.
_EMBEDDINGS = dict(atol=1e-4, rtol=1e-4)
_DENSE = dict(atol=2e-4, rtol=1e-4)
_EXACT = dict(atol=2e-5, rtol=1e-4)
_GRADIENT = 3e-4  # of the array's largest magnitude
_COSINE = 0.995   # of bfloat16 embeddings; 0.9988 was the lowest seen

_MASK_SCALE = Rule("visual_encoder.mask_logit_scale", "image/mask_logit_scale")


def image_tower(case: Case) -> list[Check]:
    """An EVA02 tower on a batch: preprocessing, masks on the grid, embeddings, gradients."""
    config, arrays, encoder = model_config(case).image, case.arrays, case.spec["encoder_cfg"]
    patch = config.patch_size
    build, shapes = parameters.abstract(
        lambda: eva_vit.EvaViT(config, dtype=case.dtype, rngs=nnx.Rngs(0)))
    source = {k: x for k, x in case.weights.items() if k.startswith("visual")}
    params = load_part(source, (*eva_clip.image_rules("visual."), _MASK_SCALE), shapes, "image")

    pictures, counts = arrays["in/image_sizes"], arrays["in/num_masks"]
    short = encoder["TEST_IMAGE_SIZE"] if encoder["TEST_RESIZE_TYPE"] == "short" else None
    network = inference.shorter_side_to(pictures, short)
    canvas = arrays["out/images_processed"].shape[2:]
    image, masks = _preprocess(arrays["in/images"], arrays["in/masks"], pictures, network, canvas)
    grid_masks = resample.masks_to_grid(masks, patch)
    grids = -(-network // patch)
    checks = [equal("grids", grids, arrays["out/grids"])]

    run = jax.jit(lambda p, *a: build(p)(*a, dense=True))
    features = run(params, image, jnp.asarray(network), grid_masks)
    got = {"m_embs": features.mask_embeddings, "i_embs": features.image_embedding}
    if case.dtype != jnp.float32:
        return [cosine("m_embs", _valid(got["m_embs"], counts),
                       _valid(arrays["out/m_embs"], counts), _COSINE),
                cosine("i_embs", got["i_embs"], arrays["out/i_embs"], _COSINE)]

    normal = eva_vit.normalize(image, jnp.asarray(network))
    checks += [
        close("images_processed", normal, channels_last(arrays["out/images_processed"]), **_EXACT),
        close("masks_processed", masks, arrays["out/masks_processed"], **_EXACT),
        close("down_masks", np.reshape(grid_masks, arrays["out/down_masks"].shape),
              arrays["out/down_masks"], **_EXACT),
        close("areas", grid_masks.sum(-1), arrays["out/areas"], **_EXACT),
        close("m_embs", _valid(got["m_embs"], counts), _valid(arrays["out/m_embs"], counts),
              **_EMBEDDINGS),
        close("i_embs", got["i_embs"], arrays["out/i_embs"], **_EMBEDDINGS)]
    cells = tuple(side // patch for side in canvas)
    dense = np.asarray(features.patch_embeddings).reshape(len(grids), *cells, -1)
    for b, (h, w) in enumerate(grids):
        checks.append(close("p_embs", dense[b, :h, :w],
                            np.moveaxis(arrays["out/p_embs"][b], 0, -1)[:h, :w], **_DENSE))
    if "out/pos_embed" in arrays:
        table = layers.resize_position_table(params["position_table"], jnp.asarray(grids), cells)
        checks.append(close("pos_embed", table[0], arrays["out/pos_embed"], **_EXACT))
    if "out/rope_cos" in arrays:
        rotary = layers.rotary_table(jnp.asarray(grids), cells, config.width // config.num_heads,
                                     config.rotary_grid)
        for name, table in zip(("rope_cos", "rope_sin"), rotary):
            checks.append(close(name, table[0], arrays[f"out/{name}"], **_EXACT))
    if "in/clip_image" in arrays:
        plain = channels_last(arrays["in/clip_image"])
        size = jnp.full((len(plain), 2), config.image_size)
        checks.append(close("clip_image_emb", build(params)(plain, size).image_embedding,
                            arrays["out/clip_image_emb"], **_EMBEDDINGS))
    if case.file.with_suffix(".grads.npz").exists():
        probe = case.gradients["probe"]
        objective = lambda p: (build(p)(image, jnp.asarray(network), grid_masks).mask_embeddings
                               * probe).sum()
        named = rules.export({"image": jax.jit(jax.grad(objective))(params)},
                             (*eva_clip.image_rules("visual."), _MASK_SCALE))
        for key in case.gradients:
            if key.startswith("grad/"):
                checks.append(close_to_largest(key, named[key.removeprefix("grad/")],
                                               case.gradients[key], _GRADIENT))
    return checks


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
    """A causal text tower (EVA-CLIP's, or OpenCLIP's with the exact GELU: the same function)."""
    if case.spec["derived"]["act"] != "gelu_erf":
        raise NotBuilt("QuickGELU")
    config, arrays = text_config(case), case.arrays
    prefix = "text." if any(k.startswith("text.") for k in case.weights) else ""
    source = {k: x for k, x in case.weights.items() if not k.startswith("visual.")}
    source.pop("logit_scale", None)
    build, shapes = parameters.abstract(
        lambda: text.TextTower(config, dtype=case.dtype, rngs=nnx.Rngs(0)))
    params = load_part(source, eva_clip.text_rules(prefix), shapes, "text")
    token_ids, checks = arrays["in/token_ids"], []
    if "prompts" in case.spec:
        token_ids = Tokenizer(config.context_length)(case.spec["prompts"])
        checks.append(equal("token_ids", token_ids, arrays["in/token_ids"]))
    embeddings = jax.jit(lambda p, ids: build(p)(ids))(params, jnp.asarray(token_ids))
    if case.dtype != jnp.float32:
        return [cosine("t_embs", embeddings, arrays["out/t_embs"], _COSINE)]
    return [*checks, close("t_embs", embeddings, arrays["out/t_embs"], **_EMBEDDINGS)]


def tokenizer(case: Case) -> list[Check]:
    token_ids = Tokenizer(case.spec["context_length"])(case.spec["prompts"])
    return [equal(name, token_ids, case.arrays[f"out/ids_{name}"])
            for name in ("open_clip", "eva_clip")]


def preprocess(case: Case) -> list[Check]:
    """Normalising, resizing to a shorter side or not at all, padding, bilinear down-sampling."""
    arrays, checks = case.arrays, []
    for step in case.spec["steps"]:
        settings, name = step["encoder_cfg"], step["name"]
        if settings["TEST_RESIZE_TYPE"] not in ("none", "short"):
            checks.append(Absent(f"resize {name}"))
            continue
        short = settings["TEST_IMAGE_SIZE"] if settings["TEST_RESIZE_TYPE"] == "short" else None
        want = arrays[f"out/{name}/images"]
        for b, (image, mask) in enumerate(zip(step["images"], step["masks"])):
            image, mask = arrays[f"in/{image}"], arrays[f"in/{mask}"]
            picture = np.array([image.shape[1:]], np.int32)
            network = inference.shorter_side_to(picture, short)
            got, masks = _preprocess(image[None], mask[None], picture, network, want.shape[2:])
            got = eva_vit.normalize(got, jnp.asarray(network))
            checks += [equal(f"{name}/sizes", network[0], arrays[f"out/{name}/sizes"][b]),
                       close(f"{name}/images", got[0], channels_last(want[b]), **_EXACT),
                       close(f"{name}/masks{b}", masks[0], arrays[f"out/{name}/masks{b}"],
                             **_EXACT)]
    masks = jnp.asarray(arrays["in/d_masks"])
    for key in arrays:
        method = key.split("/")[2] if key.startswith("out/down/") else None
        if method not in (None, "bilinear") and Absent(f"masks by {method}") not in checks:
            checks.append(Absent(f"masks by {method}"))
        if method == "bilinear":
            size = [int(n) for n in key.split("/")[-1].split("x")]
            rows, columns = (resample.bilinear_taps(n, Stage(masks.shape[1 + i], n))
                             for i, n in enumerate(size))
            checks.append(close(key, resample.resize_masks(masks, rows, columns), arrays[key],
                                **_EXACT))
    return checks


def checkpoint_layouts(case: Case) -> list[Check]:
    """Published files, read without torch: EVA-CLIP and MaskCLIP++ (OpenAI's archive not built)."""
    config, arrays, checks = model_config(case), case.arrays, [Absent("OpenAI's archive")]
    make = lambda: maskclippp.MaskCLIPpp(config, dtype=case.dtype, rngs=nnx.Rngs(0))
    build, shapes = parameters.abstract(make)
    images, masks = channels_last(arrays["in/images"]), jnp.asarray(arrays["in/masks"])
    size = jnp.asarray([images.shape[1:3]])
    grid_masks = resample.masks_to_grid(masks, config.image.patch_size)
    for kind in ("pretrained", "finetuned"):
        file = str(case.file.with_name(case.spec["files"][kind]))
        source = {k: x for k, x in weights.read(file).items() if not k.startswith("psm.")}
        table = (eva_clip.RULES if kind == "pretrained" else weights.LAYOUTS["maskclippp"])
        params, missing = rules.load(source, table, shapes, absent=eva_clip.ABSENT)
        if missing:
            scale = jnp.full((config.image.mask_layers, config.image.num_heads),
                             case.spec["encoder_cfg"]["MASK_LOGIT_SCALE"], jnp.float32)
            params = parameters.combine(params, {"image": {"mask_logit_scale": scale}})
        model = build(params)
        got = {"m_embs": model.encode_image(images, size, grid_masks).mask_embeddings,
               "t_embs": model.encode_text(jnp.asarray(arrays["in/token_ids"]))}
        for name, x in got.items():
            want = arrays[f"out/{kind}/{name}"]
            checks.append(close(f"{kind}/{name}", x, want, **_EMBEDDINGS)
                          if case.dtype == jnp.float32
                          else cosine(f"{kind}/{name}", x, want, _COSINE))
    return checks


def finetune_types(case: Case) -> list[Check]:
    """Which parameters each kind of tuning trains (EVA02 image tower, EVA text tower)."""
    checks = [Absent(f"{tower}/{kind}") for tower, kinds in case.spec["table"].items()
              for kind in kinds if kind not in dict(
                  eva02=optim.IMAGE_TUNING, text_eva=optim.TEXT_TUNING).get(tower, ())]
    for tower, prefix, kinds in (("eva02", "visual_encoder.", optim.IMAGE_TUNING),
                                 ("text_eva", "text_encoder.", optim.TEXT_TUNING)):
        for kind in kinds:
            listed = case.spec["table"][tower][kind]
            paths = {want: [p for name in listed[want] if (p := rules.path_for(
                f"{prefix}{name}", weights.LAYOUTS["maskclippp"]))] for want in listed}
            depth = 1 + max((int(p.split("/")[2]) for ps in paths.values() for p in ps
                             if p.startswith("image/blocks/")), default=0)
            is_trainable = optim.trainable_predicate(
                kind if tower == "eva02" else "none", kind if tower == "text_eva" else "none",
                depth)
            wrong = [p for p in paths["trainable"] if not is_trainable(p)]
            wrong += [p for p in paths["frozen"] if is_trainable(p)]
            checks.append(equal(f"{tower}/{kind}", sorted(wrong), []))
    return checks
