"""Small random models of OpenCLIP, timm and transformers; run by an interpreter that has them.

    python real_packages.py make FOLDER    # x.safetensors, x.npz (pictures, ids, embeddings) each
    python real_packages.py check FOLDER   # x.back.safetensors must load and give the same again
    python real_packages.py shapes FILE    # names, shapes and constants of OpenCLIP's own models
"""

import json
import pathlib
import sys

import numpy as np
import open_clip
import timm
import torch
import transformers
from open_clip.factory import get_model_config
from open_clip.pretrained import _PRETRAINED as PRETRAINED
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

CLIP_WORDS = dict(context_length=12, vocab_size=50, width=32, heads=2, layers=2)
EVA = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4)
TRUNKS = {  # timm's class and its sizes
    "eva02": (Eva, dict(EVA, qkv_fused=False, mlp_ratio=8 / 3, swiglu_mlp=True, scale_mlp=True,
                        scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16))),
    "eva01": (Eva, dict(EVA, mlp_ratio=6144 / 1408)),
    "siglip": (VisionTransformer, dict(EVA, mlp_ratio=3.7362, class_token=False)),
    "convnext": (ConvNeXt, dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))),
}
HALF = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
OPENAI = dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)


def of_timm(kind: str, words: dict, embed_dim: int, *, bare: bool = False, pool: str = "token",
            proj=None, **more) -> torch.nn.Module:
    def make(**settings):
        trunk, sizes = TRUNKS[kind]
        made = trunk(**sizes, **{
            k: x for k, x in settings.items() if k in ("num_classes", "global_pool")})
        made.default_cfg = dict(pool_size=(1, 1))
        return made

    make.__name__ = f"small_{kind}"  # OpenCLIP asks timm for a model by its name
    if not timm.is_model(make.__name__):
        timm.models.register_model(make)
    vision = dict(image_size=32, timm_model_name=make.__name__, timm_model_pretrained=False,
                  timm_pool=pool, timm_proj=proj)
    both = open_clip.CLIP if bare else open_clip.CustomTextCLIP
    return both(embed_dim, vision, words, **more)


def siglip_words(**more) -> dict:
    return dict(CLIP_WORDS, heads=4, mlp_ratio=3.7362, no_causal_mask=True, pool_type="last",
                norm_kwargs=dict(eps=1e-6), act_kwargs=dict(approximate="tanh"), **more)


def transformers_siglip(kind: str = "Siglip", **picture) -> torch.nn.Module:
    tower = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(
        text_config=dict(tower, vocab_size=50, max_position_embeddings=12, projection_size=32),
        vision_config=dict(tower, patch_size=8, **(picture or dict(image_size=32)))))


def without_text_head(model: torch.nn.Module) -> torch.nn.Module:
    """As transformers' converter leaves a model that has none."""
    torch.nn.init.eye_(model.text_model.head.weight)
    torch.nn.init.zeros_(model.text_model.head.bias)
    return model


def transformers_clip() -> torch.nn.Module:
    tower = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    return transformers.CLIPModel(transformers.CLIPConfig(
        text_config=dict(tower, vocab_size=50, max_position_embeddings=12, eos_token_id=49,
                         bos_token_id=48, intermediate_size=128),
        vision_config=dict(tower, image_size=32, patch_size=8), projection_dim=24))


def open_clip_vit(**more) -> torch.nn.Module:
    vision = dict(image_size=32, layers=2, width=32, head_width=16, patch_size=8)
    return open_clip.CLIP(24, vision, CLIP_WORDS, **more)


MODELS = {
    "open_clip_vit": (open_clip_vit, OPENAI),
    "open_clip_quick_gelu": (lambda: open_clip_vit(quick_gelu=True, nonscalar_logit_scale=True),
                             OPENAI),
    "open_clip_convnext": (lambda: of_timm("convnext", CLIP_WORDS, 24, bare=True, pool="",
                                           proj="linear"), OPENAI),
    "timm_eva02": (lambda: of_timm("eva02", CLIP_WORDS, 24), OPENAI),
    "timm_eva01": (lambda: of_timm("eva01", CLIP_WORDS, 24), OPENAI),
    "timm_siglip": (lambda: of_timm("siglip", siglip_words(proj_bias=True), 48, pool="map",
                                    proj="none", init_logit_bias=-10.0,
                                    nonscalar_logit_scale=True), HALF),
    "timm_siglip_i18n": (lambda: of_timm(
        "siglip", siglip_words(proj_type="none") | dict(width=48), 48, pool="map", proj="none",
        init_logit_bias=-10.0), HALF),
    "transformers_clip": (transformers_clip, OPENAI),
    "transformers_siglip": (transformers_siglip, HALF),
    "transformers_siglip_i18n": (transformers_siglip, HALF),
    "transformers_siglip2_naflex": (lambda: transformers_siglip("Siglip2", num_patches=16), HALF),
}


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]()
    with torch.no_grad():  # no unit scale or zero bias hides a mistake
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return (without_text_head(model) if name == "transformers_siglip_i18n" else model).eval()


def rows_of_patches(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pictures [B, 3, 32, 32] as NaFlex sees them: 4x4 patches, channels innermost."""
    patches = images.reshape(-1, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 192)
    return dict(pixel_values=patches, pixel_attention_mask=torch.ones(patches.shape[:2]).int(),
                spatial_shapes=torch.full((len(patches), 2), 4))


@torch.no_grad()
def embed(model: torch.nn.Module, name: str, images: np.ndarray, ids: np.ndarray):
    constants, images, ids = MODELS[name][1], torch.tensor(images), torch.tensor(ids)
    mean, std = (torch.tensor(constants[k])[:, None, None] for k in ("mean", "std"))
    normal = ((images / 255 - mean) / std).float()
    if name.startswith("transformers"):
        picture = rows_of_patches(normal) if "naflex" in name else dict(pixel_values=normal)
        found = model.get_image_features(**picture), model.get_text_features(input_ids=ids)
        found = [getattr(x, "pooler_output", x) for x in found]
    else:
        found = model.encode_image(normal), model.encode_text(ids)
    return [x.numpy() for x in found]


def make(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 32, 32)).astype(np.float32)
    ids = rng.integers(2, 48, (3, 12))
    ids[:, -1] = 49  # the end, which a causal tower pools
    for name in MODELS:
        model = build(name)
        save_file({k: x.contiguous().clone() for k, x in model.state_dict().items()},
                  folder / f"{name}.safetensors")
        i_embs, t_embs = embed(model, name, images, ids)
        np.savez(folder / f"{name}.npz", images=images, ids=ids.astype(np.int32), i_embs=i_embs,
                 t_embs=t_embs)


def check(folder: pathlib.Path) -> None:
    for name in MODELS:
        stored, model = np.load(folder / f"{name}.npz"), MODELS[name][0]()
        model.load_state_dict(load_file(folder / f"{name}.back.safetensors"), strict=True)
        found = embed(model.eval(), name, stored["images"], stored["ids"].astype(np.int64))
        for got, key in zip(found, ("i_embs", "t_embs")):
            assert np.array_equal(got, stored[key]), f"{name}: {key} differ"


def shapes(file: pathlib.Path) -> None:
    """All models that OpenCLIP has weights of and whose text tower is its own."""
    found = {}
    for name, trainings in PRETRAINED.items():
        sizes = get_model_config(name)
        if sizes is None or "hf_model_name" in sizes["text_cfg"] or "coca" in name:
            continue
        custom, plain = sizes.pop("custom_text", False), dict(sizes)
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        try:
            with torch.device("meta"):
                tensors = {k: list(x.shape) for k, x in kind(**plain).state_dict().items()}
        except Exception as error:  # not for meta devices: none of ours, as the test says
            print(name, error)
            continue
        found[name] = dict(shapes=tensors, trainings=trainings)
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    dict(make=make, check=check, shapes=shapes)[sys.argv[1]](pathlib.Path(sys.argv[2]))
