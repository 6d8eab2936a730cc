"""Mask2Former: its Swin beside a plain form, sizes, files of pickled arrays."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.generators import swin
from maskclippp_jax.generators.mask2former import Mask2FormerConfig
from maskclippp_jax.generators.mask_decoder import MaskDecoderConfig
from maskclippp_jax.generators.pixel_decoder import PixelDecoderConfig
from maskclippp_jax.generators.swin import SwinConfig
from maskclippp_jax.models import layers
from maskclippp_jax.weights import files as any_files, mask2former as files, rules

pytestmark = pytest.mark.usefixtures("explicit_ranks")

SWIN = SwinConfig(4, (2, 1, 1, 1), (1, 2, 2, 4), window=3)
CONFIG = Mask2FormerConfig(
    SWIN, PixelDecoderConfig(SWIN.widths, width=32, mask_width=16, num_heads=2, depth=1,
                             mlp_width=16, num_points=2),
    MaskDecoderConfig(5, width=32, mask_width=16, num_heads=2, depth=1, mlp_width=16),
    num_classes=3)


@functools.cache
def params():
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 2,
                        files.abstract(CONFIG)[1])


def named() -> dict[str, np.ndarray]:
    """The parameters under their published names, and what such files hold besides."""
    index = {f"backbone.layers.{i}.blocks.{j}.attn.relative_position_index": swin.distances(3)
             for i, depth in enumerate(SWIN.depths) for j in range(depth)}
    table = (*files.HEAD_RULES, *files.swin_rules())
    return rules.export(params(), table) | index | {
        "criterion.empty_weight": np.ones(4, np.float32)}


def write(path, content, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


# ---- The trunk ----------------------------------------------------------------------------------


def test_maps_of_any_size_halve_and_are_rounded_up(rng):
    model = files.abstract(CONFIG)[0](params()).image
    maps = jax.eval_shape(model, jnp.zeros((1, 90, 122, 3)))
    assert [m.shape for m in maps] == [(1, 23, 31, 4), (1, 12, 16, 8), (1, 6, 8, 16), (1, 3, 4, 32)]


@pytest.mark.parametrize("way", ["apart", "together"])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_block_is_attention_among_the_cells_of_a_part_of_a_window(shift, way, rng, monkeypatch):
    """Beside attention of all padded cells to all, where the others are cut off."""
    monkeypatch.setattr(layers, "IN_CACHE", 5 * 2 * 3**4)  # five of twelve windows at a time
    height, width, window, heads = 5, 7, 3, 2
    build, shapes = parameters.abstract(lambda: swin.Block(
        8, heads, window, shift, 16, dtype=jnp.float32, heads=way, rngs=parameters.Keys(0)))
    model = build(jax.tree.map(lambda x: jnp.asarray(
        rng.standard_normal(x.shape).astype(np.float32)), shapes))
    x = jnp.asarray(rng.standard_normal((2, height, width, 8), np.float32))

    rows, columns = np.divmod(np.arange(6 * 9), 9)  # the padded map
    places = [(r - shift) % size for r, size in ((rows, 6), (columns, 9))]
    own_window = (places[0] // window) * 3 + places[1] // window
    wrapped = np.stack([rows < shift, columns < shift])  # came in from the other side
    edge = np.stack([places[0] >= 3, places[1] >= 6])  # the last window of each axis
    part = (wrapped & edge)[0] * 2 + (wrapped & edge)[1]
    place = (places[0] % window) * window + places[1] % window
    index = swin.distances(window)[place[:, None], place[None]]

    normal = jnp.pad(model.norm1(x), ((0, 0), (0, 1), (0, 2), (0, 0))).reshape(2, 54, 8)
    q, k, v = (p.reshape(2, 54, heads, 4) for p in jnp.split(model.attention.qkv(normal), 3, -1))
    logits = jnp.einsum("btak,bsak->bats", q / 2, k)
    logits = logits + jnp.moveaxis(model.attention.bias_table[...][index], -1, 0)[None]
    logits = jnp.where(part[:, None] == part[None], logits, logits - 100)
    logits = jnp.where(own_window[:, None] == own_window[None], logits, -jnp.inf)
    mixed = jnp.einsum("bats,bsak->btak", jax.nn.softmax(logits, -1), v).reshape(2, 54, 8)
    mixed = model.attention.out(mixed).reshape(2, 6, 9, 8)[:, :height, :width]
    want = x + mixed
    want = want + model.mlp(model.norm2(want))
    np.testing.assert_allclose(model(x), want, rtol=1e-4, atol=1e-4)


def test_distances_tell_rows_and_columns_apart():
    found = swin.distances(2)
    np.testing.assert_array_equal(found[0], [4, 3, 1, 0])  # to itself, right, below, both
    assert set(np.diag(found)) == {4} and found.max() == 8


# ---- Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_file_loads_bit_by_bit(protocol, tmp_path):
    content = {"model": named(), "__author__": "x", "count": np.float64(3)}
    path = write(tmp_path / "x.pkl", content, protocol)
    source = any_files.read(path)
    assert files.config_of(source.shapes, path, num_heads=2) == CONFIG
    got, want = (parameters.flatten(x) for x in (files.load(source, CONFIG, path), params()))
    assert got.keys() == want.keys()
    assert all(np.array_equal(got[p], want[p]) for p in want)


def test_arrays_of_every_kind_are_read(tmp_path):
    arrays = {"f": np.arange(6.0).reshape(2, 3), "t": np.arange(6, dtype=np.int64).reshape(2, 3).T,
              "e": np.zeros((0, 3), np.float16), "b": np.array([True, False]),
              "s": np.float32(2.5), "z": np.array(3, np.uint8)}
    source = any_files.read(write(tmp_path / "x.pkl", arrays))
    for name, want in arrays.items():
        assert source.shapes[name] == want.shape and source[name].dtype == want.dtype
        np.testing.assert_array_equal(source[name], want)


class _Call:
    def __reduce__(self):
        return print, ("called",)


def test_a_file_that_does_not_fit_is_refused(tmp_path, capsys):
    tensors = named()
    for name, content, says in (
            ("call", {"model": _Call()}, "it asks for __builtin__.print"),
            ("objects", {"a": np.array([None, 1], object)}, "an array is of 'O8'"),
            ("complex", {"a": np.zeros(2, np.complex64)}, "an array is of 'c8'"),
            ("big-endian", {"a": np.zeros(2, ">f4")}, "in the order >"),
            ("list", [1, 2], "holds a list, wanted a dictionary of arrays")):
        with pytest.raises(ValueError, match=says):
            any_files.read(write(tmp_path / f"{name}.pkl", content))
    assert "called" not in capsys.readouterr().out
    short = tmp_path / "short.pkl"
    short.write_bytes(pickle.dumps(tensors, 2)[:-1000])
    with pytest.raises(ValueError, match="short.pkl is refused"):
        any_files.read(str(short))
    with pytest.raises(FileNotFoundError, match="no file"):
        any_files.read(str(tmp_path / "none.pkl"))

    index = "backbone.layers.0.blocks.1.attn.relative_position_index"
    source = any_files.read(write(tmp_path / "x.pkl", tensors | {index: tensors[index].T}))
    with pytest.raises(ValueError, match="has other distances in .*blocks.1"):
        files.load(source, CONFIG, "x.pkl")
    with pytest.raises(ValueError, match="holds no whole Swin"):
        files.config_of({k: x.shape for k, x in tensors.items() if "backbone" not in k}, "x",
                        num_heads=2)
    with pytest.raises(ValueError, match="holds no whole Mask2Former .*lacks class_head/kernel"):
        files.config_of({"a": (1,)}, "x")
    other = dataclasses.replace(CONFIG, num_classes=4)
    with pytest.raises(ValueError, match="2 problems.*class_embed.bias: shape"):
        files.load(any_files.read(write(tmp_path / "x.pkl", tensors)), other, "x.pkl")
