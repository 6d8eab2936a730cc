"""Attention by kernels against attention that writes its logits: a TPU's step by step on a CPU, and
what cuDNN is asked for, computed by JAX itself."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from maskclippp_jax import params as parameters
from maskclippp_jax.models import (
    cudnn_attention,
    eva_vit,
    fused_attention,
    layers,
    positions,
    vit,
)
from maskclippp_jax.runtime import sharding
from tests.models.test_laws import near

pytestmark = pytest.mark.usefixtures("explicit_ranks")
fused = functools.partial(fused_attention.attend, interpret=True)
cudnn = functools.partial(cudnn_attention.attend, implementation="xla")
both = pytest.mark.parametrize("kernel", [fused, cudnn], ids=["fused", "cudnn"])
plain = functools.partial(layers.attend, heads="together")


def value_and_gradients(attend, arrays, allowed, probe, turn=None):
    """[B, T, A, K], and the gradients with respect to the arrays of its product with `probe`."""
    @jax.jit
    def run(*arrays):
        value, pull = jax.vjp(lambda *a: attend(*a, turn=turn, allowed=allowed), *arrays)
        return value, *pull(probe)
    return run(*arrays)


def draw(rng, *shape):
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4)]


def draw_turn(rng, quarter, *shape):
    """By angles that nothing ties together; the token in front of all others stays."""
    angles = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return positions.Rotation(*vit.unturned_prefix((jnp.cos(angles), jnp.sin(angles)), 1), quarter)


@both
@pytest.mark.parametrize("heads, width, quarter, parts", [
    (4, 64, positions.quarter_pairs, 3), (2, 88, None, 3), (3, 64, None, 1),
    (2, 88, positions.quarter_halves, 2), (3, 64, positions.quarter_pairs, 1)])
def test_the_kernel_gives_what_plain_attention_gives(
        rng, monkeypatch, kernel, heads, width, quarter, parts):
    # The last of three parts of 16 queries reaches beyond the 41 tokens.
    monkeypatch.setattr(fused_attention, "_LOGITS", 41 * 48 // parts)
    *arrays, probe = draw(rng, 2, 41, heads, width)
    allowed = jnp.asarray(rng.random((2, 1, 41)) < 0.6).at[..., 0].set(True)
    turn = quarter and draw_turn(rng, quarter, min(parts, 2), 40, width)  # or one for both images
    found, want = (value_and_gradients(f, arrays, allowed, probe, turn) for f in (kernel, plain))
    for one, other in zip(found, want, strict=True):
        near(one, other)


@both
def test_a_padded_image_in_a_batch_gives_what_it_gives_alone(rng, kernel):
    *arrays, probe = draw(rng, 2, 40, 2, 64)  # what is hidden holds noise
    allowed = (jnp.arange(40)[None] < jnp.asarray([40, 25])[:, None])[:, None]
    probe = jnp.where(allowed[:, 0, :, None, None], probe, 0)
    together = value_and_gradients(kernel, arrays, allowed, probe)
    for image, length in enumerate((40, 25)):
        own = lambda x: x[image, None, :length]
        alone = value_and_gradients(kernel, [own(x) for x in arrays], None, own(probe))
        for one, other in zip(together, alone, strict=True):
            near(own(one), other)
        assert not any(np.any(change[image, length:]) for change in together[1:])


@both
def test_devices_attend_to_their_own_images(rng, kernel):
    *arrays, probe = draw(rng, 16, 24, 2, 64)
    allowed = jnp.asarray(rng.random((16, 1, 24)) < 0.6).at[..., 0].set(True)
    turn = draw_turn(rng, positions.quarter_pairs, 16, 23, 64)
    whole = value_and_gradients(kernel, arrays, allowed, probe, turn)
    mesh = sharding.make_mesh(2)
    assert mesh.size == 8
    with jax.set_mesh(mesh):
        split = sharding.put([np.asarray(x) for x in (*arrays, allowed, probe)],
                             sharding.batch_sharding(mesh))
        of_own = turn._replace(**sharding.put(
            {k: np.asarray(x) for k, x in (("cos", turn.cos), ("sin", turn.sin))},
            sharding.batch_sharding(mesh)))
        found = value_and_gradients(kernel, split[:3], *split[3:], of_own)
        one_by_one = sharding.each_picture(  # the devices are parted already
            lambda x, _: kernel(*(a[None] for a in x[:3]), turn._replace(
                cos=x[3][None], sin=x[4][None]), x[5][None])[0],
            (*split[:3], of_own.cos, of_own.sin, split[3]))
        half = jax.ShapeDtypeStruct((4, 200, 2, 64), jnp.bfloat16)
        for module in (fused_attention, cudnn_attention):
            assert not module.fits(half, half, None, None)  # too few images for eight devices
    assert found[0].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 4)
    for one, other in zip(found, whole, strict=True):
        near(one, other)
    near(one_by_one, whole[0])


@pytest.mark.parametrize("heads, module, kernel", [
    ("fused", fused_attention, fused), ("cudnn", cudnn_attention, cudnn)])
def test_image_tokens_in_bfloat16_take_the_kernel_and_nothing_else_does(
        rng, monkeypatch, heads, module, kernel):
    calls = []
    monkeypatch.setattr(module, "attend", lambda q, k, v, turn, seen: calls.append(
        jax.typeof(q)) or kernel(q, k, v, turn, seen))
    config = eva_vit.EvaViTConfig(image_size=96, patch_size=8, width=128, depth=2, num_heads=2,
                                  mlp_width=64, embed_dim=16, mask_layers=1)
    image = jnp.asarray(rng.integers(0, 256, (1, 96, 96, 3)), jnp.uint8)
    masks = jnp.asarray(rng.random((1, 2, 144)), jnp.float32)
    size = jnp.asarray([[96, 80]])

    def embed(heads, dtype):
        build, _ = parameters.abstract(make := lambda: config.make(
            heads=heads, dtype=dtype, rngs=parameters.Keys(3)))
        params = parameters.initialize(make)
        return jax.jit(lambda p: build(p)(image, size, masks).mask_embeddings)(params)

    want, plain_half = embed("together", "float32"), embed("together", "bfloat16")
    half = embed(heads, "bfloat16")
    # Not that of masks, which has a bias of its own; and nobody reads the last block's patches.
    assert len(calls) == 1
    assert calls[0].shape == (1, 145, 2, 64) and calls[0].dtype == jnp.bfloat16
    near(half, plain_half, 0.02)
    assert np.abs(half - want).max() <= 2 * np.abs(plain_half - want).max()


@pytest.mark.parametrize("queries, keys, allowed, taken", [
    (((2, 145, 2, 64), "bfloat16"), (2, 145, 2, 64), (2, 1, 145), True),
    (((2, 3000, 2, 64), "bfloat16"), (2, 3000, 2, 64), None, True),
    (((2, 145, 2, 64), "float32"), (2, 145, 2, 64), (2, 1, 145), False),  # asked for to be exact
    (((2, 145, 2, 64), "bfloat16"), (2, 144, 2, 64), None, False),
    (((2, 145, 2, 64), "bfloat16"), (2, 145, 2, 64), (145, 145), False),  # of words
    (((2, 17, 2, 64), "bfloat16"), (2, 17, 2, 64), None, False),          # does not pay
    (((2, 9000, 2, 64), "bfloat16"), (2, 9000, 2, 64), None, False)])     # no room
def test_what_the_kernel_cannot_do_is_left_to_plain_attention(queries, keys, allowed, taken):
    like = lambda shape, dtype: shape and jax.ShapeDtypeStruct(shape, dtype)
    arrays = like(*queries), like(keys, queries[1])
    turn = positions.Rotation(*[like(queries[0][:2] + (64,), "float32")] * 2, None)
    assert taken == fused_attention.fits(*arrays, None, like(allowed, bool))
    turned = taken and queries[0][1] < 3000  # the angles want room as well
    assert turned == fused_attention.fits(*arrays, turn, like(allowed, bool))


@pytest.mark.parametrize("queries, allowed, taken", [
    (((2, 145, 2, 64), "bfloat16"), (2, 1, 145), True),
    (((2, 9001, 2, 88), "bfloat16"), (1, 1, 9001), True),
    (((2, 144, 2, 128), "bfloat16"), None, True),
    (((2, 145, 2, 128), "bfloat16"), None, False),         # one token more is hidden
    (((2, 144, 2, 128), "bfloat16"), (2, 1, 144), False),  # hidden keys want eight channels
    (((2, 145, 2, 20), "bfloat16"), None, False),          # no multiple of eight
    (((2, 145, 2, 64), "float32"), (2, 1, 145), False),    # asked for to be exact
    (((2, 145, 2, 64), "bfloat16"), (145, 145), False),    # of words
    (((2, 17, 2, 64), "bfloat16"), None, False)])          # does not pay
def test_what_cudnn_cannot_do_is_left_to_plain_attention(queries, allowed, taken):
    tokens = jax.ShapeDtypeStruct(*queries)
    allowed = allowed and jax.ShapeDtypeStruct(allowed, bool)
    assert taken == cudnn_attention.fits(tokens, tokens, None, allowed)


def test_hidden_keys_are_hidden_however_large_the_logits_are(rng):
    *arrays, probe = draw(rng, 1, 40, 2, 64)
    arrays[0] *= 100
    allowed = jnp.arange(40)[None, None] % 3 > 0
    found, want = (value_and_gradients(f, arrays, allowed, probe) for f in (cudnn, plain))
    for one, other in zip(found, want, strict=True):
        near(one, other, 1e-4)  # of logits of hundreds both have lost two digits
    assert not any(np.any(change[0, ::3]) for change in found[2:])


@pytest.mark.parametrize("devices", [1, 8])
def test_a_gpu_program_calls_cudnn_and_has_no_logits(rng, monkeypatch, devices):
    # JAX asks the CUDA plugin for its cuDNN before it lowers a call.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 92800)
    arrays = [jax.ShapeDtypeStruct((8, 145, 2, 88), jnp.bfloat16)] * 4  # and the probe
    allowed = jax.ShapeDtypeStruct((8, 1, 145), bool)

    def program(heads):
        run = jax.jit(lambda *arrays: value_and_gradients(
            functools.partial(layers.attend, heads=heads), arrays[:3], *arrays[3:]))
        split = sharding.batch_sharding(mesh)
        like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
        with jax.set_mesh(mesh):
            return run.trace(*map(like, (*arrays[:3], allowed, arrays[3]))).lower(
                lowering_platforms=("cuda",)).as_text()

    mesh = sharding.make_mesh(1) if devices == 8 else jax.sharding.Mesh(
        np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    calls, logits = "@__cudnn$fmhaSoftmax", re.compile("x14[56]x14[56]x")
    assert logits.search(program("together"))
    text = program("cudnn")
    # Forwards and backwards, each device with its own images.
    found = re.findall(rf"{re.escape(calls)}\w*\(.*?tensor<(\d+)x146x2x96xbf16>", text)
    assert found == [str(8 // devices)] * 2
    assert not logits.search(text)


@pytest.mark.parametrize("quarter", [positions.quarter_pairs, positions.quarter_halves])
def test_channels_turn_the_same_by_a_matrix_and_by_moving_them(rng, quarter):
    """In bfloat16 a matrix of 0, 1 and -1 turns them; tokens in front of the patches stay."""
    tokens = jnp.asarray(rng.normal(size=(2, 9, 2, 8)), jnp.bfloat16)
    angles = jnp.asarray(rng.normal(size=(2, 7, 8)), jnp.float32)
    turn = positions.Rotation(*vit.unturned_prefix((jnp.cos(angles), jnp.sin(angles)), 2), quarter)
    moved = turn(tokens.astype(jnp.float32)).astype(jnp.bfloat16)
    turned = jax.jit(lambda x: turn(x))(tokens)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, moved)
    np.testing.assert_array_equal(turned[:, :2], tokens[:, :2])
    assert not np.array_equal(turned[:, 2:], tokens[:, 2:])
