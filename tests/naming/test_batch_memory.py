"""Evaluations take as many pictures at once as the memory does, and say so."""

import logging

import jax
import pytest

from maskclippp_jax.configs import quickstart
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.naming import batch_memory
from maskclippp_jax.runtime import devices, sharding


def batch_of(monkeypatch, free, sizes, model=None, **changes):
    monkeypatch.setattr(devices, "free_bytes", lambda device: free)
    config = quickstart.get_config().unlock()
    for key, value in changes.items():
        config.eval[key] = value
    mesh = sharding.make_mesh(1)
    return batch_memory.fitting(config.eval, model or config.model, mesh)(sizes, 16), mesh.size


def test_the_batch_fits_the_largest_picture_and_is_said(monkeypatch, caplog):
    sizes = [(64, 64), (480, 640), (64, 600)] * 20
    with caplog.at_level(logging.WARNING, "absl"):
        wanted, devices_ = batch_of(monkeypatch, 10**13, sizes)
        assert wanted == -(-50 // devices_) * devices_ and not caplog.records
        fewer, _ = batch_of(monkeypatch, 2 * 10**10, sizes)
    assert devices_ <= fewer < wanted and fewer % devices_ == 0
    said, = (r.getMessage() for r in caplog.records)
    assert f"{wanted} at a time (eval.batch_size) would take about" in said
    assert "pictures of 640x480 pixels, in which the image tower sees 4800 patches" in said
    assert f"20.0 GB are free: {fewer} at a time" in said
    caplog.clear()
    least, _ = batch_of(monkeypatch, 10**6, sizes)
    assert least == devices_
    assert "a smaller --config.eval.short_side lets it see fewer" in caplog.text


def test_small_pictures_and_convolutions_keep_their_batch(monkeypatch, caplog):
    all_of, devices_ = batch_of(monkeypatch, 2 * 10**9, [(64, 64)] * 50)
    assert all_of >= 50
    assert batch_of(monkeypatch, 2 * 10**9, [(64, 64)])[0] == devices_  # no more than there are
    photographs = [(480, 640)] * 60
    assert batch_of(monkeypatch, 2 * 10**10, photographs, short_side=64)[0] == all_of
    convnext = MaskCLIPppConfig.convnext_base_w_320(num_templates=1)
    assert batch_of(monkeypatch, 1, photographs, convnext)[0] == all_of
    assert batch_of(monkeypatch, None, photographs)[0] == all_of
    assert batch_of(monkeypatch, 1, [])[0] == devices_
    assert not caplog.records


def test_free_memory_is_told():
    free = devices.free_bytes(jax.devices()[0])
    if free is None:
        pytest.skip("nothing tells it on this system")
    assert 10**6 < free < 10**15
