"""Files of EoMT: every layout, what they are of, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.weights import eomt, rules
from tests import tiny_eomt

GATED = dataclasses.replace(tiny_eomt.CONFIG, swiglu=True, mlp_width=40)


class Shapes:
    """A file of which only the shapes are known."""

    def __init__(self, shapes):
        self.shapes = shapes


def load(tmp_path, tensors, config=tiny_eomt.CONFIG):
    save_file(tensors, tmp_path / "x.safetensors")
    path = str(tmp_path / "x.safetensors")
    _, shapes = eomt.abstract(config)
    return eomt.load(eomt.open_file(path), shapes, path)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("config", [tiny_eomt.CONFIG, GATED], ids=["plain", "gated"])
@pytest.mark.parametrize("layout", ["authors", "transformers"])
def test_a_layout_read_back_gives_the_same_numbers(layout, config, tmp_path):
    tensors = tiny_eomt.named(layout, config)
    same(load(tmp_path, tensors, config), tiny_eomt.params(config))
    compiled = {n.replace("network.", "network._orig_mod.").replace("layers", "layers._orig_mod"): x
                for n, x in tensors.items()}
    same(load(tmp_path, compiled, config), tiny_eomt.params(config))


def test_our_own_names_are_a_layout_too(tmp_path):
    same(load(tmp_path, parameters.flatten(tiny_eomt.params())), tiny_eomt.params())


@pytest.mark.parametrize("layout", ["authors", "transformers"])
@pytest.mark.parametrize("config", [tiny_eomt.CONFIG, GATED], ids=["plain", "gated"])
def test_shapes_tell_the_sizes(layout, config, tmp_path):
    shapes = {name: x.shape for name, x in tiny_eomt.named(layout, config).items()}
    assert eomt.config_of(Shapes(shapes), "x") == config
    assert eomt.config_of(Shapes(shapes), "x", num_heads=4).num_heads == 4
    trunk = {name: shape for name, shape in shapes.items() if "attn_mask_probs" not in name}
    with pytest.raises(ValueError, match="does not say how many of its blocks have queries"):
        eomt.config_of(Shapes(trunk), "x")
    assert eomt.config_of(Shapes(trunk), "x", query_blocks=1) == config


@pytest.mark.parametrize("name", ["coco_panoptic_small_640_2x", "ade20k_semantic_large_512"])
def test_without_the_schedule_the_trunk_tells_the_blocks_with_queries(name):
    config = getattr(EoMTConfig, name)()
    _, shapes = eomt.abstract(config)
    found = {path: leaf.shape for path, leaf in parameters.flatten(shapes).items()}
    assert eomt.config_of(Shapes(found), "x") == config


def test_a_file_of_another_model_is_recognised(tmp_path):
    for tensors, says in (
            ({"visual.proj": np.zeros(3)}, "holds no EoMT .it holds visual.proj, ...., wanted"),
            ({"upscale_block.block.0.conv1.bias": np.zeros(64, np.float32)}, "is it whole"),
            ({n: x for n, x in tiny_eomt.named("transformers").items() if "position" not in n},
             "without a position table, so not on DINOv2")):
        with pytest.raises(ValueError, match=says):
            eomt.config_of(Shapes({n: x.shape for n, x in tensors.items()}), "file")


def test_what_is_missing_unknown_or_of_another_shape_is_listed_together(tmp_path):
    tensors = tiny_eomt.named("transformers")
    tensors["layers.0.mlp.fc3.weight"] = np.zeros((2, 2), np.float32)
    tensors["query.weight"] = tensors["query.weight"][:, :32]
    del tensors["layers.1.layer_scale2.lambda1"]
    with pytest.raises(rules.Misfit, match=r"\(3 problems\)") as error:
        load(tmp_path, tensors)
    for part in ("layers.0.mlp.fc3.weight: unknown here", "blocks/1/scale2: not in the file",
                 "query.weight: shape (6, 32) for queries, wanted (6, 64)"):
        assert part in str(error.value)


def test_a_file_cut_short_is_refused(tmp_path):
    save_file(tiny_eomt.named("authors"), tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="no safetensors file, or was cut short"):
        eomt.open_file(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("layout", ["authors", "transformers"])
def test_a_generator_in_place_of_a_clip_is_recognised(layout):
    with pytest.raises(ValueError, match="x holds an EoMT, which finds masks and names none"):
        weights.layout_of(tiny_eomt.named(layout), "x")


def test_every_tensor_left_out_is_left_out_with_a_reason():
    for table in (eomt.authors_rules(swiglu=True), eomt.transformers_rules(swiglu=False)):
        assert all(r.why for r in table if r.path is None)
