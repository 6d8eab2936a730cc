"""Embeddings of names on disk: made once, and never those of something else."""

import dataclasses
import types

import jax
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.models import similarity
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.naming import loading, text_cache

CONFIG = TextConfig(8, 12, 8, 1, 2, 4)
PARAMS = {"norm": {"scale": np.ones(3, np.float32)}, "blocks": {0: np.arange(4.0)}}
IDS = np.arange(12, dtype=np.int32).reshape(2, 3, 2)


def test_the_key_depends_on_weights_sizes_and_token_ids_and_on_nothing_else():
    key = text_cache.key_of(CONFIG, PARAMS, IDS)
    reordered = dict(reversed({k: v.copy() if isinstance(v, np.ndarray) else dict(v)
                               for k, v in PARAMS.items()}.items()))
    assert key == text_cache.key_of(dataclasses.replace(CONFIG), reordered, IDS.copy())
    others = [
        (dataclasses.replace(CONFIG, quick_gelu=True), PARAMS, IDS),
        (CONFIG, PARAMS | {"norm": {"scale": np.float32([1, 1, 1.0001])}}, IDS),
        (CONFIG, PARAMS | {"blocks": {0: np.arange(4.0).astype(np.float32)}}, IDS),
        (CONFIG, PARAMS, IDS.reshape(3, 2, 2)), (CONFIG, PARAMS, IDS[::-1])]
    assert len({key, *(text_cache.key_of(*o) for o in others)}) == 6


def test_the_key_depends_on_the_code_and_on_how_exact_products_are(monkeypatch):
    import jax

    from maskclippp_jax.training import losses
    key = text_cache.key_of(CONFIG, PARAMS, IDS)
    with jax.default_matmul_precision("default"):
        assert text_cache.key_of(CONFIG, PARAMS, IDS) != key
    monkeypatch.setattr(text_cache, "_CODE", (*text_cache._CODE[:-1], losses))
    assert text_cache.key_of(CONFIG, PARAMS, IDS) != key


def test_embeddings_are_made_once(tmp_path):
    calls = []
    make = lambda: calls.append(1) or np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    for _ in range(2):
        found = text_cache.load_or_make(str(tmp_path / "a/b"), "key", (1, 2), make)
        np.testing.assert_array_equal(found, make())
    assert len(calls) == 1 + 2  # two by this test
    assert [f.name for f in (tmp_path / "a/b").iterdir()] == ["key.npz"]


def test_a_damaged_file_is_made_anew_whatever_byte_changed(tmp_path, caplog):
    wanted = np.linspace(-1, 1, 60, dtype=np.float32).reshape(2, 5, 6)
    load = lambda: text_cache.load_or_make(str(tmp_path), "key", (2, 5), lambda: wanted)
    load()
    whole = (tmp_path / "key.npz").read_bytes()
    start = whole.index(wanted.tobytes())
    damaged = [b"", whole[:-1], whole[:len(whole) // 2]]
    for place in (0, 30, start - 60, start, start + 3, start + wanted.nbytes - 1):
        changed = bytearray(whole)
        changed[place] ^= 0x80
        damaged.append(bytes(changed))
    for content in damaged:
        (tmp_path / "key.npz").write_bytes(content)
        np.testing.assert_array_equal(load(), wanted)
        assert (tmp_path / "key.npz").read_bytes() == whole
    for other in (wanted[:1], np.full_like(wanted, np.inf)):  # written so, not damaged
        np.savez(tmp_path / "key.npz", embeddings=other)
        np.testing.assert_array_equal(load(), wanted)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    found = text_cache.load_or_make(str(tmp_path / "file/in"), "key", (1, 1),
                                    lambda: np.ones((1, 1, 2)))
    np.testing.assert_array_equal(found, np.ones((1, 1, 2)))


def test_many_trees_of_prompts_give_what_the_tower_gives(monkeypatch, rng):
    config = TextConfig(16, 50, 16, 2, 2, 8)
    make = lambda: config.make(rngs=parameters.Keys(0))
    params, (build, _) = parameters.initialize(make), parameters.abstract(make)
    ids = np.zeros((7, 3, 16), np.int32)
    for row, length in zip(ids.reshape(21, 16), [3, 9, 4, 15, 4, 7, 2] * 3):
        row[:length] = rng.integers(1, 3, length)
        row[length - 1] = 49  # the end token
    want = np.asarray(jax.jit(lambda p, x: similarity.unit(build(p)(x)))(
        params, ids.reshape(21, 16))).reshape(7, 3, 8)
    model = types.SimpleNamespace(text=config)
    monkeypatch.setattr(loading, "_TREE", 16)
    monkeypatch.setattr(loading, "_TREES", 2)
    for backend in ("cpu", "tpu"):  # of which the number of trees depends
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        assert len(loading.chunks_of_prompts(config, ids.reshape(21, 16))) > 2
        np.testing.assert_allclose(loading.embed_names(model, params, ids), want, atol=1e-6)
