"""Makes the cases of this folder with public PyTorch code; needs what the tests do not.

    pip install torch==2.13.0 transformers==5.24.0 timm==1.0.31 open_clip_torch==2.24.0
    python tests/golden/small/make.py

Small random towers: transformers' CLIPModel, SiglipModel and Siglip2Model, timm's ConvNeXt,
OpenCLIP's modified ResNet, in evaluation mode. The pooling of masks is written out here from the
method's definition. The files have the format of the stored cases of the reference (`parity`), and
are kept small for the tests.
"""

import json
import pathlib

import numpy as np
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from safetensors.numpy import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

HERE = pathlib.Path(__file__).parent
MEAN = np.array((122.7709383, 116.7460125, 104.09373615), np.float32).reshape(1, 3, 1, 1)
STD = np.array((68.5005327, 66.6321579, 70.32316305), np.float32).reshape(1, 3, 1, 1)
ENCODER = dict(DOWNSAMPLE_METHOD="bilinear", TEST_RESIZE_TYPE="none")


def main():
    hugging_face()
    siglip()
    convnext()
    resnet()


def shake(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random everywhere, so that no unit scale or zero bias hides a mistake."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.add_(0.1 * torch.randn_like(p))
            if name.endswith("gamma"):
                p.add_(0.3)
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.add_(0.2 * torch.randn_like(b))
            elif name.endswith("running_var"):
                b.mul_(0.5 + torch.rand_like(b))
    return module.eval()


def numbers(module: torch.nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + k: np.array(v.detach().numpy()) for k, v in module.state_dict().items()}


def hugging_face():
    sizes = dict(num_hidden_layers=2, num_attention_heads=2, hidden_act="quick_gelu",
                 projection_dim=16)
    model = shake(CLIPModel(CLIPConfig(
        projection_dim=16,
        vision_config=dict(hidden_size=24, intermediate_size=40, image_size=24, patch_size=8,
                           **sizes),
        text_config=dict(hidden_size=20, intermediate_size=80, vocab_size=50, eos_token_id=49,
                         bos_token_id=48, max_position_embeddings=12, **sizes))), 1)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 3, 24, 24)).astype(np.uint8)
    ids = np.zeros((3, 12), np.int64)
    for row, length in zip(ids, (4, 10, 2)):
        row[0], row[1:length + 1], row[length + 1] = 48, rng.integers(1, 48, length), 49
    pixels = torch.tensor((images - MEAN) / STD)
    words = model.text_model(input_ids=torch.tensor(ids)).pooler_output
    vision = model.vision_model(pixel_values=pixels).pooler_output
    save_file(numbers(model), HERE / "hugging_face.safetensors")
    np.savez_compressed(
        HERE / "hugging_face.npz", images=images, token_ids=ids.astype(np.int32),
        i_embs=model.visual_projection(vision).detach().numpy(),
        t_embs=model.text_projection(words).detach().numpy())


def siglip():
    """transformers' SiglipModel, and its Siglip2Model, which is the NaFlex kind of SigLIP 2."""
    sizes = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    words = dict(sizes, vocab_size=30, max_position_embeddings=6, projection_size=8,
                 bos_token_id=None, eos_token_id=1, pad_token_id=0)
    rng = np.random.default_rng(4)
    ids = rng.integers(1, 30, (3, 6))
    images = rng.integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    model = shake(SiglipModel(SiglipConfig(
        vision_config=dict(sizes, image_size=12, patch_size=4), text_config=words)), 5)
    pixels = torch.tensor(images / 127.5 - 1).float().permute(0, 3, 1, 2)
    store_siglip("siglip", model, images, ids, pixel_values=pixels)

    model = shake(Siglip2Model(Siglip2Config(
        vision_config=dict(sizes, num_patches=9, patch_size=4), text_config=words)), 6)
    # The second picture has 2 x 3 patches of the canvas' 3 x 3, in rows of channels.
    patches = (images / 127.5 - 1).reshape(2, 3, 4, 3, 4, 3).swapaxes(2, 3).reshape(2, 9, 48)
    store_siglip("siglip2_naflex", model, images, ids, pixel_values=torch.tensor(patches).float(),
                 pixel_attention_mask=torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
                 spatial_shapes=torch.tensor([[3, 3], [2, 3]]))


def store_siglip(name: str, model, images, ids, **pictures):
    found = model(input_ids=torch.tensor(ids), **pictures)
    save_file(numbers(model), HERE / f"{name}.safetensors")
    np.savez_compressed(
        HERE / f"{name}.npz", images=images, token_ids=ids.astype(np.int32),
        i_embs=found.image_embeds.detach().numpy(), t_embs=found.text_embeds.detach().numpy(),
        logits=found.logits_per_image.detach().numpy())


def store(name, spec, weights, pooled, plain, pixels, images, masks, named):
    """Writes a case: embeddings, and gradients of sum(m_embs * probe) for the named parameters."""
    probe = np.random.default_rng(9).normal(size=pooled.shape).astype(np.float32)
    gradients = torch.autograd.grad((pooled * torch.tensor(probe)).sum(), list(named.values()))
    save_file(weights, HERE / f"{name}.safetensors")
    np.savez_compressed(HERE / f"{name}.npz", **{
        "in/images": images, "in/masks": masks,
        "in/image_sizes": np.full((len(images), 2), images.shape[-1], np.int32),
        "in/num_masks": np.full(len(images), masks.shape[1], np.int32),
        "out/m_embs": pooled.detach().numpy(), "out/i_embs": plain.detach().numpy(),
        "out/areas": down(masks).sum((-2, -1)).numpy()})
    np.savez_compressed(HERE / f"{name}.grads.npz", probe=probe, **{
        f"grad/{k}": g.numpy() for k, g in zip(named, gradients)})
    shape = ", ".join(map(str, images.shape))
    spec |= dict(case=name, kind="conv", arrays={"out/images_processed": f"float32[{shape}]"})
    (HERE / f"{name}.json").write_text(json.dumps(spec, indent=1) + "\n")


def down(masks: np.ndarray) -> torch.Tensor:
    """Masks on the grid of 32 pixels."""
    size = tuple(side // 32 for side in masks.shape[-2:])
    return torch.nn.functional.interpolate(torch.tensor(masks), size, mode="bilinear")


def pictures(side: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, (2, 3, side, side)).astype(np.uint8)
    masks = (rng.random((2, 3, side // 16, side // 16)) < 0.4).astype(np.float32)
    masks[1, 2] = 0  # an empty one
    masks = masks.repeat(16, 2).repeat(16, 3)
    return images, masks, torch.tensor((images - MEAN) / STD)


def convnext():
    dims, depths, embed_dim = (8, 16, 24, 32), (1, 1, 2, 1), 12
    trunk = shake(timm.create_model("convnext_large", num_classes=0, global_pool="", dims=dims,
                                    depths=depths), 2)
    head = shake(torch.nn.ModuleDict(dict(
        fc1=torch.nn.Linear(dims[-1], 2 * embed_dim),
        fc2=torch.nn.Linear(2 * embed_dim, embed_dim, bias=False))), 3)
    images, masks, pixels = pictures(96)
    features = trunk.stages(trunk.stem(pixels))  # [B, D, h, w]
    embed = lambda x: head.fc2(torch.nn.functional.gelu(head.fc1(
        torch.nn.functional.layer_norm(x, dims[-1:], trunk.head.norm.weight, trunk.head.norm.bias,
                                       1e-6))))
    grid = down(masks)
    pooled = torch.einsum("bdhw,bnhw->bnd", features, grid) / (
        grid.sum((-2, -1))[..., None] + 1e-6)
    named = {f"visual.trunk.{k}": p for k, p in trunk.named_parameters()
             if k in ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight",
                      "stages.2.blocks.1.gamma", "stages.3.downsample.1.weight")}
    spec = dict(
        model_cfg=dict(embed_dim=embed_dim, vision_cfg=dict(
            timm_model_name="convnext_large", timm_proj="mlp", image_size=96)),
        timm_kwargs=dict(dims=dims, depths=depths), encoder_cfg=dict(ENCODER, DOWN_MASK_THRESH=0.0))
    store("convnext", spec, numbers(trunk, "visual.trunk.") | numbers(head, "visual.head.mlp."),
          embed(pooled), embed(features.mean((2, 3))), pixels, images, masks, named)


def resnet():
    width, heads, embed_dim = 4, 2, 12
    tower = shake(ModifiedResNet((1, 2, 1, 1), embed_dim, heads, image_size=96, width=width), 4)
    scale = torch.tensor([-5.0, 0.5], requires_grad=True)
    images, masks, pixels = pictures(96)
    features = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(pixels)))))
    pool, grid = tower.attnpool, down(masks).flatten(2)  # [B, N, L]
    cells = features.flatten(2).transpose(1, 2)  # [B, L, C]
    tokens = torch.cat([cells.mean(1, keepdim=True), cells], 1) + pool.positional_embedding
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, A, T, K]
    q, k, v = split(pool.q_proj(tokens[:, :1])), split(pool.k_proj(tokens[:, 1:])), split(
        pool.v_proj(tokens[:, 1:]))
    inside = (grid > grid.amax(-1, keepdim=True) / 2)[:, None]
    bias = torch.where(inside, grid[:, None] * scale.exp().view(1, -1, 1, 1), -100.0)
    logits = q @ k.transpose(-1, -2) / k.shape[-1]**0.5 + bias  # [B, A, N, L]
    pooled = pool.c_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    named = {f"visual.{k}": p for k, p in tower.named_parameters()
             if k in ("conv1.weight", "layer1.0.bn1.weight", "layer2.0.downsample.0.weight",
                      "attnpool.positional_embedding")}
    named["visual_encoder.mask_logit_scale"] = scale
    spec = dict(
        model_cfg=dict(embed_dim=embed_dim, vision_cfg=dict(
            image_size=96, layers=[1, 2, 1, 1], width=width, head_width=32 * width // heads)),
        encoder_cfg=dict(ENCODER, DOWN_MASK_THRESH=None))
    weights = numbers(tower, "visual.") | {
        "visual_encoder.mask_logit_scale": np.array(scale.detach().numpy())}
    store("resnet", spec, weights, pooled, tower(pixels), pixels, images, masks, named)


if __name__ == "__main__":
    main()
