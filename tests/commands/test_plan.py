"""What the compiled training step does on many chips, and the command that tells it beforehand."""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.data.bundles import Preparation
from maskclippp_jax.generators.mask2former import Mask2FormerConfig
from maskclippp_jax.naming import generator, loading
from maskclippp_jax.runtime import sharding
from maskclippp_jax.training import compiled_step, plans
from maskclippp_jax.weights import published_generators
from tests import tiny_generators

ROOT = pathlib.Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the compiler for TPUs is not installed; pip install 'jax[tpu]' brings it")
# The quick start with a tiny model; from width 256 on its matrices are large enough to be split.
CONFIG = '''
from maskclippp_jax.configs import quickstart
from maskclippp_jax.models import eva_vit, maskclippp, similarity, text
def get_config(arg="32"):
    config = quickstart.get_config().unlock()
    full, width = text.TextConfig.quickstart(), int(arg)
    config.model = maskclippp.MaskCLIPppConfig(
        eva_vit.EvaViTConfig(image_size=32, patch_size=8, width=width, depth=1, num_heads=4,
                             mlp_width=width, embed_dim=16, mask_layers=1),
        text.TextConfig(full.context_length, full.vocab_size, 32, 1, 2, 16, words=full.words),
        similarity.LinearSimilarityConfig(1, 16))
    config.dtype = "bfloat16"
    config.weights = ""  # none are needed
    config.train.size = 32
    config.train.batch_size = 4
    return config.lock()
'''


@pytest.fixture(autouse=True)
def without_flags_of_cpus(monkeypatch):
    """libtpu ends the process where XLA_FLAGS has flags that it does not know."""
    jax.devices()  # has read them
    monkeypatch.delenv("XLA_FLAGS")


@pytest.mark.parametrize("fsdp, remat", [(4, "full"), *(
    pytest.param(*x, marks=pytest.mark.slow) for x in [(2, "none"), (2, "full"), (4, "none")])])
@pytest.mark.parametrize("topology", [None, pytest.param("v5e:2x2", marks=needs_libtpu)])
def test_split_parameters_are_gathered_one_by_one_and_tokens_stay_where_they_are(
        topology, fsdp, remat):
    namespace = {}
    exec(CONFIG, namespace)
    config = namespace["get_config"]("256").unlock()
    config.remat = remat
    _, shapes = parameters.abstract(loading.model_maker(config, platform="cpu"))
    arrays = parameters.flatten(shapes["image"])
    mesh = sharding.make_mesh(fsdp, topology)
    # Even where there are so few of them that they would be cheaper to move.
    compiled = compiled_step.lower_training(config, mesh, mesh.size).compile()
    found = compiled_step.collectives(compiled.as_text())
    gathers = [size for kind, size in found if kind == "all-gather"]
    split = [p for p, x in arrays.items() if any(sharding.state_shardings(x, mesh).spec)]
    assert len(split) >= 6
    assert len(gathers) >= len(split)  # the compiler did not put them together
    assert max(gathers) <= max(4 * x.size for x in arrays.values())
    assert not any(kind == "all-to-all" for kind, _ in found)


def test_collectives_are_counted_by_kind_and_size():
    program = """
      %a = bf16[4,8]{1,0:T(8,128)} all-gather(%x), dimensions={0}
      %b = (f32[2]{0}, s8[3,2]{1,0}) all-reduce(%x, %y), to_apply=%sum
      %c = (f32[2]{0}, f32[8]{0}, u32[]) all-gather-start(%x), dimensions={0}
      %d = f32[8]{0} all-gather-done(%c)
      ROOT %e = f32[] all-reduce(%x), to_apply=%sum
      %f = f32[3]{0} add(%all-reduce, %x)"""
    assert compiled_step.collectives(program) == [
        ("all-gather", 64), ("all-gather", 32), ("all-reduce", 14), ("all-reduce", 4)]


def test_kernels_are_priced_as_they_say():
    program = """
      %a_64_of_128.1 = bf16[4,8] custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="f/a_64_of_128/pallas_call"}, backend_config={"custom_call_config":{"body":"TU","cost_estimate":{"flops":"1000","transcendentals":"3","bytes_accessed":"200","remote_bytes_transferred":"0"}}}
      %b = bf16[4,8] custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TU","cost_estimate":{"flops":"50","transcendentals":"3","bytes_accessed":"70"}}}
      %c = bf16[4,8] custom-call(%x), custom_call_target="tpu_custom_call", backend_config={}
      %d = bf16[4,8] custom-call(%x), custom_call_target="ConcatBitcast"
      ROOT %e = f32[8]{0} all-reduce(%x), to_apply=%sum"""  # noqa: E501
    assert compiled_step.kernels(program) == [(1000, 200, 0.5), (50, 70, 1.0)]


@needs_libtpu
def test_the_attention_of_a_tpu_never_writes_its_logits():
    namespace = {}
    exec(CONFIG, namespace)
    config = namespace["get_config"]("256").unlock()  # four heads of 64 channels
    config.train.size = 96  # 144 patches of 8 pixels
    # Of the last block few rows are computed, by no kernel.
    config.model = dataclasses.replace(
        config.model, image=dataclasses.replace(config.model.image, depth=2))
    mesh = sharding.make_mesh(2, "v5e:2x2")
    program = compiled_step.lower_training(config, mesh, mesh.size).compile().as_text()
    forward, backward = sorted(compiled_step.kernels(program))
    pairs = 4 * 145**2
    turned = 145 * 256 * 64  # queries or keys by a matrix, and backwards their gradients
    assert (forward.flops, backward.flops) == (
        2 * 2 * (pairs * 64 + turned), 2 * (5 * pairs * 64 + 4 * turned))
    assert forward.used == backward.used == 0.5
    assert "145,145" not in program and "all-to-all" not in program


@pytest.mark.parametrize("room", [0, 1, 2, 3, 11, 12, 100, 255, 256, 400])
def test_the_largest_batch_is_found_to_an_eighth(room):
    asked = []
    found = compiled_step.largest_batch(lambda n: asked.append(n) or n <= room, 256)
    assert found <= room and found >= min(room, 256) * 7 / 8
    assert len(asked) == len(set(asked)) <= 13


@pytest.mark.parametrize("asked, planned, words", [
    ([4, 12, 64], [4, 12, 64], "64 images a chip do not fit into 16 GiB, about 21 would"),
    ([40, 64], [1, 2, 40, 64], "40 images a chip do not fit into 16 GiB, about 21 would"),
    ([1, 22], [1, 2, 22], "22 images a chip do not fit into 16 GiB, about 21 would"),
    ([1, 20], [1, 20], None)])
def test_a_batch_that_does_not_fit_is_told_the_largest_that_would(
        monkeypatch, asked, planned, words):
    def plan(images):
        memory = 3.9 + 0.56 * images  # up to 21 images
        return plans.Plan("training", "", 1, 1, 1, "none", images, memory <= 16, 16,
                          memory if memory <= 16 else None)

    said = []
    monkeypatch.setattr(plans.logging, "warning", said.append)
    assert [p.images_per_chip for p in plans._each(plan, asked)] == planned
    assert [s[:len(words)] for s in said] == ([words] if words else [])


def test_where_not_even_one_image_fits_the_sentence_says_what_leaves_room(monkeypatch):
    said = []
    monkeypatch.setattr(plans.logging, "warning", said.append)
    plans._each(lambda images: plans.Plan("training", "", 1, 1, 1, "none", images, False, 16), [8])
    assert said[0].startswith("1 images a chip do not fit") and "remat=full" in said[0]


def run(tmp_path, *flags):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, "-m", "maskclippp_jax", "plan", f"--config={tmp_path}/tiny.py", *flags],
        env=dict(os.environ, PYTHONPATH=str(ROOT), COLUMNS="140", JAX_PLATFORMS="cpu",
                 XLA_FLAGS=""), cwd=ROOT, capture_output=True, text=True, timeout=300)


@needs_libtpu
def test_plan_tells_memory_flops_and_what_does_not_fit(tmp_path):
    done = run(tmp_path, "--topology=v5e:2x2", "--batches=1,2,400000", "--fast",
               f"--workdir={tmp_path}/plan")
    assert done.returncode == 0, done.stderr
    assert "4x1" in done.stdout and "too much" in done.stdout
    assert "400000 images a chip do not fit into 16 GiB, about" in done.stderr
    one, two, many = json.loads((tmp_path / "plan/plan.json").read_text())["plans"]
    assert one["chips"] == 4 and (one["data"], one["fsdp"]) == (4, 1)
    assert 1.5 < two["tera_flops"] / one["tera_flops"] < 2.1
    assert 0 < one["memory_gib"] <= two["memory_gib"] < 1
    assert one["collectives"]["all-reduce"] >= 1
    assert one["images_per_second"] == pytest.approx(
        4 / (one["seconds"] + one["collective_seconds"]))
    assert not many["fits"] and many["memory_gib"] is None and many["images_per_second"] is None


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["local", pytest.param("v5e:2x2", marks=needs_libtpu)])
def test_plan_of_an_evaluation_grows_with_masks_and_of_a_cpu_has_no_times(tmp_path, topology):
    plans = []
    for masks in (8, 80):
        done = run(tmp_path, f"--topology={topology}", "--step=evaluation", f"--masks={masks}",
                   "--picture=64x96", f"--workdir={tmp_path}/plan{masks}")
        assert done.returncode == 0, done.stderr
        plans += json.loads((tmp_path / f"plan{masks}/plan.json").read_text())["plans"]
    few, many = plans
    assert few["step"] == "evaluation" and few["fits"] and not sum(few["collectives"].values())
    assert 0 < few["memory_gib"] < many["memory_gib"] < few["available_gib"]
    assert few["tera_flops"] < many["tera_flops"]
    assert (few["images_per_second"] is None) == (topology == "local")


@pytest.mark.parametrize("flags, words", [
    (["--step=evaluation", "--sweep"], "--sweep compares training steps"),
    (["--step=evaluation", "--picture=64"], "--picture is '64', wanted height x width")])
def test_what_belongs_to_the_other_step_is_refused(tmp_path, flags, words):
    done = run(tmp_path, "--topology=local", *flags)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_generator_is_planned_for_pictures_on_one_device(monkeypatch):
    entry = published_generators.find("mask2former-t")._replace(config=tiny_generators.MASK2FORMER)
    monkeypatch.setattr(published_generators, "GENERATORS", (entry,))
    monkeypatch.setitem(generator.PREPARATIONS, Mask2FormerConfig, Preparation(64, 64, None, 64))
    plan = functools.partial(plans.compare_generator, topology=plans.LOCAL, picture=(50, 90))
    one, two = plan("mask2former-t", batches=[1, 2])
    assert (one.step, one.chips) == ("generator mask2former-t, float32", 1)
    assert (one.images_per_chip, two.images_per_chip) == (1, 2)
    assert two.tera_flops > 1.8 * one.tera_flops > 0 and not one.collectives
    half, = plan("mask2former-t", dtype="bfloat16")
    assert half.step == "generator mask2former-t, bfloat16"
    assert 0 < half.gigabytes != one.gigabytes  # another program; on a CPU no smaller one
    with pytest.raises(ValueError, match="no published generator mask2former-x; did you mean mask"):
        plan("mask2former-x")


@pytest.mark.parametrize("flags, words", [
    (["--step=generator"], "--generator=NAME and --step=generator belong together"),
    (["--generator=fcclip-l"], "--generator=NAME and --step=generator belong together"),
    (["--dtype=bfloat16"], "--dtype is for --step=generator; an experiment has its own"),
    (["--step=generator", "--generator=fcclip-l"], "has no configuration; leave --config out")])
def test_flags_of_a_generators_plan_belong_together(tmp_path, flags, words):
    done = run(tmp_path, "--topology=local", *flags)
    assert done.returncode == 2 and words in done.stderr, done.stderr


@needs_libtpu
@pytest.mark.parametrize("flags, words", [
    (["--topology=v5e:5x5"], "no TPU topology 'v5e:5x5'"),
    (["--config.mesh.fsdp=3", "--batches=1"], "mesh.fsdp is 3, but there are 16 devices"),
    ([], "train.batch_size is 4, but v5e:4x4 has 16 devices")])
def test_bad_input_ends_in_one_sentence(tmp_path, flags, words):
    done = run(tmp_path, *flags, f"--workdir={tmp_path}/plan")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "plan").exists()
