"""The causal text tower of CLIP (Radford et al. 2021), which OpenCLIP and EVA-CLIP use as it is.

Causal and pooled at the end token: what follows that token never matters. So a batch of prompts
may be cut after its longest prompt (`truncate_prompts`) and gives exactly the same embeddings.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskclippp_jax.models import layers, prefix_trees


@dataclasses.dataclass(frozen=True)
class TextConfig:
    context_length: int  # tokens
    vocab_size: int      # the largest id is the end token
    width: int           # channels of a token
    depth: int           # blocks
    num_heads: int
    embed_dim: int       # joint image-text width
    norm_epsilon: float = 1e-5
    quick_gelu: bool = False
    qkv_bias: bool = True  # of queries, keys and values
    # The words a small model was trained on; None: CLIP's whole byte-pair vocabulary.
    words: tuple[str, ...] | None = None

    @classmethod
    def clip(cls, width: int, depth: int = 12, embed_dim: int | None = None,
             context_length: int = 77) -> "TextConfig":
        """The text towers of all published CLIPs differ in these numbers only.

        Args:
          width: channels of a token; every 64 of them are a head.
          depth: blocks.
          embed_dim: joint width; None: as wide as a token.
          context_length: tokens; fewer in PE-Core.
        """
        return cls(context_length=context_length, vocab_size=49408, width=width, depth=depth,
                   num_heads=width // 64, embed_dim=embed_dim or width)

    @classmethod
    def eva02_b16(cls) -> "TextConfig":
        """Text tower of EVA02-CLIP-B-16, 63.4 M parameters."""
        return cls.clip(512)

    @classmethod
    def eva02_l14_336(cls) -> "TextConfig":
        """Text tower of EVA02-CLIP-L-14-336, 123.7 M parameters."""
        return cls.clip(768)

    @classmethod
    def quickstart(cls) -> "TextConfig":
        """The small tower that ships with the project; it knows the words of its captions only."""
        return cls(context_length=48, vocab_size=36, width=128, depth=3, num_heads=4, embed_dim=128,
                   words=tuple("a photo of on and , . red green blue yellow purple white brown "
                               "grey pink zero one two three four five six seven eight nine brick "
                               "grass gravel stars coins writing".split()))

    def make(self, **settings) -> "TextTower":
        return TextTower(self, **settings)


class TextTower(nnx.Module):
    """The text tower; `remat` as in `layers.rematerialize`."""

    def __init__(self, config: TextConfig, *, dtype=jnp.float32, heads: str = "apart",
                 remat: str = "none", rngs: nnx.Rngs):
        c = self.config = config
        self.dtype, self.remat = dtype, remat
        normal = lambda std, *shape: nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.token_embedding = normal(0.02, c.vocab_size, c.width)
        self.position_table = normal(0.01, c.context_length, c.width)
        self.blocks = nnx.List(
            [TextBlock(c, dtype=dtype, heads=heads, rngs=rngs) for _ in range(c.depth)])
        self.norm = layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.projection = normal(c.width**-0.5, c.width, c.embed_dim)

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Embeds prompts.

        Args:
          token_ids: [n, X] int32 with X at most the context length; padding is 0 and follows the
            end token, which is the largest id.

        Returns:
          [n, E] in the tower's dtype, not normalised.
        """
        length = token_ids.shape[-1]
        if length > self.config.context_length:
            raise ValueError(f"prompts have {length} tokens, the text tower takes at most "
                             f"{self.config.context_length}")
        tokens = self.token_embedding[...][token_ids] + self.position_table[None, :length]
        end = jnp.argmax(token_ids, -1)  # the first end token
        stops = jnp.full((1, length), length)  # each token is followed by its descendants alone
        return self._pool(tokens, stops, end[:, None])[:, 0]

    def embed_trees(self, trees: prefix_trees.Trees) -> jax.Array:
        """Embeds prompts that lie in trees: [n, M // 2, E], the same as of each by itself.

        The embeddings of prompts that do not exist mean nothing.
        """
        tokens = self.token_embedding[...][trees.token_ids] + self.position_table[...][trees.depths]
        return self._pool(tokens, trees.stops, trees.ends)

    def _pool(self, tokens, stops, ends):
        """Embeddings [n, R, E] of the tokens `ends` [n, R] among tokens [n, M, D] of trees."""
        tokens, every = tokens.astype(self.dtype), jnp.arange(tokens.shape[1])[None]
        *blocks, last = self.blocks
        run = layers.rematerialize(self.remat)
        allowed = prefix_trees.sees(every, stops)  # [1 or n, M, M]
        for block in blocks:
            tokens = run(block, tokens, allowed)
        # The last block is asked for these tokens alone.
        pooled = run(last, tokens, prefix_trees.sees(ends, stops), ends)
        return self.norm(pooled) @ self.projection[...].astype(self.dtype)


class TextBlock(nnx.Module):
    """A pre-norm block with one fused projection to queries, keys and values."""

    def __init__(self, c: TextConfig, *, dtype, heads: str, rngs: nnx.Rngs):
        norm = lambda: layers.layer_norm(c.width, epsilon=c.norm_epsilon, dtype=dtype, rngs=rngs)
        self.norm1 = norm()
        self.attention = TextAttention(c, dtype=dtype, heads=heads, rngs=rngs)
        self.norm2 = norm()
        activation = layers.quick_gelu if c.quick_gelu else layers.exact_gelu
        self.mlp = layers.MLP(c.width, 4 * c.width, activation, dtype=dtype, rngs=rngs)

    def __call__(self, tokens, allowed, chosen=None):
        """[n, M, D] -> the same; of the tokens `chosen` [n, R] alone, [n, R, D], if given.

        `allowed` is [1 or n, M or R, M].
        """
        mixed = self.attention(self.norm1(tokens), allowed, chosen)
        tokens = _take(tokens, chosen) + mixed
        return tokens + self.mlp(self.norm2(tokens))


class TextAttention(nnx.Module):
    def __init__(self, c: TextConfig, *, dtype, heads: str, rngs: nnx.Rngs):
        self.num_heads, self.heads = c.num_heads, heads
        self.qkv = nnx.Linear(
            c.width, 3 * c.width, use_bias=c.qkv_bias, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(c.width, c.width, dtype=dtype, rngs=rngs)

    def __call__(self, x, allowed, chosen):
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        q, k, v = (layers.split_heads(t, self.num_heads) for t in (_take(q, chosen), k, v))
        mixed = layers.attend(q, k, v, allowed=allowed, heads=self.heads)
        return self.out(layers.merge_heads(mixed))


def _take(tokens, chosen):
    """[n, M, D], [n, R] -> [n, R, D]."""
    return tokens if chosen is None else jnp.take_along_axis(tokens, chosen[..., None], axis=1)


def truncate_prompts(token_ids: np.ndarray, multiple: int = 8) -> np.ndarray:
    """Cuts padding that no prompt needs; the embeddings stay exactly the same.

    Args:
      token_ids: [n, X] int32, padding 0 after the end token (the largest id).
      multiple: the new length is a multiple of this, so that few programs are compiled.

    Returns:
      [n, X'] with X' <= X.
    """
    return cut_after(token_ids, int(token_ids.argmax(-1).max()) + 1, multiple)


def cut_after(token_ids: np.ndarray, longest: int, multiple: int = 8) -> np.ndarray:
    """The first columns of [n, X]: a multiple of a number that holds `longest`, or all."""
    return token_ids[:, :min(-(-longest // multiple) * multiple, token_ids.shape[1])]
