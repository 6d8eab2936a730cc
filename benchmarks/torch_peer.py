"""The same computation in eager PyTorch, for benchmarks: EVA02-CLIP with mask tokens, and more.

It is done as the public reference of MaskCLIP++ does it (mask tokens among the others, with one
bias over all of them in the last blocks; masks resized to every size on their way; the map of all
classes), with PyTorch's fused attention, and on our parameters.
"""

import numpy as np
import torch
import torch.nn.functional as F

from maskclippp_jax import params as parameters
from maskclippp_jax.models import layers, positions
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.models.text import TextConfig


class Weights:
    """Our parameters.

    Attributes:
      weights: tensors by our paths; matrices lie as PyTorch wants them, [out, in].
    """

    def __init__(self, params: parameters.Tree, norm_epsilon: float, device: str = "cpu"):
        self.weights, self.norm_epsilon, self.device = {}, norm_epsilon, device
        for path, array in parameters.flatten(params).items():
            tensor = torch.from_numpy(np.array(array, np.float32)).to(device)
            if tensor.ndim == 4:  # of patches: HWIO
                tensor = tensor.permute(3, 2, 0, 1)
            elif path.endswith("/kernel"):
                tensor = tensor.T
            self.weights[path] = tensor.contiguous()

    def linear(self, path: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{path}/kernel"], self.weights.get(f"{path}/bias"))

    def norm(self, path: str, x: torch.Tensor) -> torch.Tensor:
        scale, bias = (self.weights[f"{path}/{k}"] for k in ("scale", "bias"))
        return F.layer_norm(x, scale.shape, scale, bias, self.norm_epsilon)


class TextPeer(Weights):
    """CLIP's text tower, which encodes prompts one by one."""

    def __init__(self, config: TextConfig, params: parameters.Tree, device: str = "cpu"):
        super().__init__(params, config.norm_epsilon, device)
        self.config = config

    def encode(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Unit embeddings [n, E] of prompts [n, X] with their padding."""
        x = self.weights["token_embedding"][token_ids]
        x = x + self.weights["position_table"][:x.shape[1]]
        for i in range(self.config.depth):
            path = f"blocks/{i}"
            qkv = self.linear(f"{path}/attention/qkv", self.norm(f"{path}/norm1", x)).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2) for t in qkv)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.linear(f"{path}/attention/out", mixed.transpose(1, 2).flatten(2))
            y = F.gelu(self.linear(f"{path}/mlp/fc1", self.norm(f"{path}/norm2", x)))
            x = x + self.linear(f"{path}/mlp/fc2", y)
        pooled = x[torch.arange(len(x)), token_ids.argmax(-1)]
        return F.normalize(self.norm("norm", pooled) @ self.weights["projection"], dim=-1)


class Peer(Weights):
    """A model with our parameters."""

    def __init__(self, config: MaskCLIPppConfig, params: parameters.Tree, device: str = "cpu"):
        super().__init__(params, config.image.norm_epsilon, device)
        self.config = config

    def tables(self, grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Cosines and sines [L, K] of a grid, and its position table [1 + L, D]."""
        image = self.config.image
        size = np.array([grid], np.int32)
        angles = positions.rotary_table(size, grid, image.width // image.num_heads,
                                        image.rotary_grid)
        cos, sin = (torch.from_numpy(np.array(x[0])).to(self.device) for x in angles)
        table = self.weights["image/position_table"]
        side = int((len(table) - 1) ** 0.5)
        square = table[1:].T.reshape(1, -1, side, side)
        resized = F.interpolate(square, grid, mode="bicubic", align_corners=True)
        return cos, sin, torch.cat([table[:1], resized.flatten(2)[0].T])

    def encode(self, pixels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, N, E] of masks [B, N, h, w] on the token grid, of pictures [B, 3, H, W] in
        0 ... 255."""
        c = self.config.image
        mean, std = (torch.tensor(x, device=self.device).reshape(1, 3, 1, 1)
                     for x in (layers.PIXEL_MEAN, layers.PIXEL_STD))
        x = F.conv2d((pixels - mean) / std, self.weights["image/patch_embed/kernel"],
                     self.weights["image/patch_embed/bias"], stride=c.patch_size)
        grid = tuple(x.shape[2:])
        cos, sin, table = self.tables(grid)
        x = x.flatten(2).transpose(1, 2)
        first = self.weights["image/class_token"].expand(len(x), 1, -1)
        x = torch.cat([first, x], 1) + table
        num_image, num_masks = x.shape[1], masks.shape[1]
        for i in range(c.depth):
            left, bias = c.depth - 1 - i, None
            if left < c.mask_layers:
                if x.shape[1] == num_image:
                    x = torch.cat([x, x[:, :1].expand(-1, num_masks, -1)], 1)
                bias = self.bias(masks.flatten(2), left)
            path = f"image/blocks/{i}"
            y = self.norm(f"{path}/norm1", x)
            x = x + self.attention(f"{path}/attention", y, cos, sin, num_image, bias)
            y = self.norm(f"{path}/norm2", x)
            y = F.silu(self.linear(f"{path}/mlp/w1", y)) * self.linear(f"{path}/mlp/w2", y)
            x = x + self.linear(f"{path}/mlp/w3", self.norm(f"{path}/mlp/norm", y))
        return self.linear("image/head", self.norm("image/norm", x[:, num_image:]))

    def bias(self, masks: torch.Tensor, left: int) -> torch.Tensor:
        """[B, A, T, T] over all tokens: image tokens see no mask token, mask tokens their patches.
        """
        scale = self.weights["image/mask_logit_scale"][left].exp()  # [A]
        threshold = self.config.image.mask_threshold
        limit = masks.amax(-1, keepdim=True) / 2 if threshold is None else threshold
        inside = torch.where(masks > limit, 1.0, 0.0)
        outside = (1 - inside) * layers.OUTSIDE_BIAS
        of_masks = (inside * masks)[:, None] * scale[None, :, None, None] + outside[:, None]
        batch, heads, number, patches = of_masks.shape
        total = 1 + patches + number
        bias = torch.zeros(batch, heads, total, total, device=self.device)
        bias[..., 1 + patches:] = -torch.inf
        bias[:, :, 1 + patches:, 0] = -torch.inf
        bias[:, :, 1 + patches:, 1:1 + patches] = of_masks
        return bias

    def attention(self, path, x, cos, sin, num_image, bias):
        heads = self.config.image.num_heads
        q, k, v = (self.linear(f"{path}/{name}", x).unflatten(-1, (heads, -1)).transpose(1, 2)
                   for name in ("query", "key", "value"))  # [B, A, T, K]
        q, k = (torch.cat([t[:, :, :1], turn(t[:, :, 1:num_image], cos, sin), t[:, :, num_image:]],
                          2) for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        mixed = mixed.transpose(1, 2).flatten(2)
        if f"{path}/inner_norm/scale" in self.weights:
            mixed = self.norm(f"{path}/inner_norm", mixed)
        return self.linear(f"{path}/out", mixed)

    def classify(self, embeddings: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """[B, N, E] and unit vectors [C, T, E] -> logits [B, N, C], the head folded as ours is."""
        inner, outer = (f"similarity/corr_{x}" for x in ("in", "out"))
        weight = self.weights[f"{outer}/kernel"] @ self.weights[f"{inner}/kernel"]  # [1, T]
        constant = (self.weights[f"{outer}/kernel"] @ self.weights[f"{inner}/bias"]
                    + self.weights[f"{outer}/bias"])
        scale = self.weights["logit_scale"].exp().clamp(max=100)
        names = torch.einsum("cte,t->ce", text, weight[0])
        return scale * F.normalize(embeddings, dim=-1) @ names.T + constant


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs of neighbouring channels turned by their angles."""
    pairs = x.unflatten(-1, (-1, 2))
    return x * cos + torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2) * sin


def resize(x: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(x, tuple(int(n) for n in size), mode="bilinear", align_corners=False)


def grid_masks(logits: torch.Tensor, enlarged, kept, network, patch: int
               ) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored logits [1, N, h, w] -> masks at the size `kept`, and on the token grid."""
    masks = resize(logits.sigmoid(), enlarged)[..., :kept[0], :kept[1]]
    return masks, resize(resize(masks, network), [n // patch for n in network])


def label_map(masks: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor, weight: float, size
              ) -> torch.Tensor:
    """[H, W] classes, from masks [1, N, h, w], our logits [1, N, C] and a generator's with void
    last [1, N, C + 1]."""
    mine, own = ours.softmax(-1), theirs[..., :-1].softmax(-1)
    both = (own ** (1 - weight) * mine ** weight + 1e-8).log().softmax(-1)
    both = both * (1 - theirs.softmax(-1)[..., -1:])
    return torch.einsum("bnc,bnhw->bchw", both, resize(masks, size))[0].argmax(0)


def loss_of(peer: Peer, pixels, segments, labels, weights, text) -> torch.Tensor:
    """The training loss of a batch whose masks are segments [B, H, W], 0 = none; weights: [B, N] of
    `losses.mask_weights`."""
    slots = torch.arange(1, labels.shape[1] + 1, device=segments.device)
    masks = (segments[:, None] == slots[None, :, None, None]).float()
    patch = peer.config.image.patch_size
    masks = resize(masks, [n // patch for n in segments.shape[1:]])
    logits = peer.classify(peer.encode(pixels, masks), text)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (losses * weights.flatten()).sum()
