"""A model taken away: the folder alone gives the numbers of the model."""

import ast
import copy
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors
from PIL import Image

import maskclippp_jax as mc
from maskclippp_jax.data import scenes
from maskclippp_jax.export import folder as exporting
from tests import tiny_generators

onnx = pytest.importorskip("onnx")

CLASSES = list(scenes.CLASSES)
# What runs the folder has nothing of ours, and for ONNX nothing of JAX.
_BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {folder!r})
import json, run
print(json.dumps([[scores.tolist(), ids] for scores, ids in (
    run.name(*files) for files in {calls!r})]))
print([n for n in {blocked!r} if n in sys.modules])
"""
_OURS = ("maskclippp_jax", "flax", "orbax", "grain", "optax")
_NO_JAX = (*_OURS, "jax", "jaxlib", "safetensors", "cv2", "scipy", "onnx")


@pytest.fixture(scope="module")
def model():
    return mc.load("untuned", "quickstart", generator="quickstart")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two pictures of other sizes with label maps, in the second of which 255 means nothing."""
    place, result = tmp_path_factory.mktemp("pictures"), []
    for number, size in enumerate(((64, 64), (110, 70))):
        scene = scenes.draw_scene(np.random.default_rng(number), size=64)
        image = Image.fromarray(scene.image).resize(size, Image.Resampling.BICUBIC)
        labels = np.array(Image.fromarray(scene.segments).resize(size, Image.Resampling.NEAREST))
        labels[:9] = 255 if number else labels[:9]
        paths = place / f"{number}.png", place / f"{number}_masks.png"
        image.save(paths[0])
        Image.fromarray(labels).save(paths[1])
        result.append(tuple(map(str, paths)))
    return result


@pytest.fixture(scope="module")
def onnx_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "onnx"
    checked = model.export(folder, CLASSES, sizes=[(112, 64)])
    return folder, checked


def run_alone(folder, calls, blocked):
    """What the folder's run.py says in a process where some packages cannot be imported."""
    code = _BLOCKED.format(blocked=blocked, folder=str(folder), calls=calls)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
                          env=environment | dict(JAX_PLATFORMS="cpu"))
    assert done.returncode == 0, done.stderr
    *_, found, imported = done.stdout.splitlines()
    assert imported == "[]"
    return [(np.array(scores), ids) for scores, ids in json.loads(found)]


def test_onnx_names_as_the_model_does_without_jax(model, files, onnx_folder):
    folder, _ = onnx_folder
    calls = [*files, *((picture,) for picture, _ in files)]
    found = run_alone(folder, calls, _NO_JAX)
    assert len(found) == 4
    for (scores, ids), call in zip(found, calls):
        result = model.name(*call, CLASSES) if len(call) == 2 else model.segment(*call, CLASSES)
        assert ids == result.ids.tolist() and len(ids) >= 1
        # Scores of up to 1; float32 through another library.
        np.testing.assert_allclose(scores, result.scores, atol=2e-5)
        assert (scores.argmax(-1) == result.classes).all()


def test_differences_are_checked_and_in_the_manifest(onnx_folder):
    folder, checked = onnx_folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["programs"]) == set(checked) == {
        "encoder_112x64", "classifier", "generator", "classifier_of_generated"}
    for name, found in checked.items():
        assert manifest["programs"][name]["difference"] == found.difference < 1e-5
        assert (folder / manifest["programs"][name]["file"]).is_file()
        assert (folder / manifest["programs"][name]["parameters"]).is_file()
    assert len(manifest["classes"]) == len(CLASSES) and manifest["opset"] == 18
    assert manifest["encoders"] == [dict(program="encoder_112x64", width=112, height=64)]


def test_graphs_hold_no_parameters_and_leave_dimensions_open(onnx_folder):
    folder, _ = onnx_folder
    for name in ("encoder_112x64", "generator"):
        assert (folder / f"{name}.onnx").stat().st_size < 300_000
    graph = onnx.load(folder / "encoder_112x64.onnx", load_external_data=False).graph
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
              for i in graph.input}
    assert shapes == dict(image=["batch", "picture_height", "picture_width", 3],
                          masks=["batch", "masks", "mask_height", "mask_width"],
                          mask_sizes=[2, 2])


def test_stablehlo_names_as_the_model_does_without_its_code(tiny, files, tmp_path):
    """One artefact for three platforms, run by jax alone."""
    folder, files = tmp_path / "stablehlo", files[:1]
    checked = tiny.export(folder, CLASSES, format="stablehlo", sizes=[(64, 64)])
    assert max(found.difference for found in checked.values()) < 1e-5
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    found = run_alone(folder, files, _OURS)
    assert len(found) == len(files)
    for (scores, ids), call in zip(found, files):
        result = tiny.name(*call, CLASSES)
        assert ids == result.ids.tolist() and len(ids) >= 1
        np.testing.assert_allclose(scores, result.scores, atol=2e-5)


def test_half_numbers_are_near_and_take_half_the_room(tiny, tmp_path):
    folder = tmp_path / "half"
    checked = tiny.export(
        folder, CLASSES, dtype="float16", sizes=[(64, 64), (112, 64)], num_masks=4, batch=1)
    # Half numbers have 11 bits.
    assert 1e-5 < checked["encoder_64x64"].difference < 5e-3
    with safetensors.safe_open(folder / "encoder.safetensors", "numpy") as tensors:
        kinds = {n: tensors.get_tensor(n).dtype.name for n in tensors.keys()}
    assert kinds["blocks/0/attention/query/kernel"] == "float16"
    assert kinds["blocks/0/norm1/scale"] == "float32"
    graph = onnx.load(folder / "encoder_64x64.onnx", load_external_data=False).graph
    shape = next(i for i in graph.input if i.name == "masks").type.tensor_type.shape
    assert [d.dim_value for d in shape.dim[:2]] == [1, 4]


def test_numbers_that_differ_are_not_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.TOLERANCES, "float32", 1e-12)
    with pytest.raises(ValueError, match="differs from ours .*; nothing was written"):
        tiny.export(tmp_path / "x", CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_are_not_replaced(tiny, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all I have")
    with pytest.raises(FileExistsError, match="give another --output, or --overwrite"):
        tiny.export(mine, CLASSES)
    with pytest.raises(ValueError, match="no folder that this command wrote"):
        tiny.export(mine, CLASSES, overwrite=True)
    assert [f.name for f in mine.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("flags, sentence", [
    (["--checkpoint=untuned"], "got no --output"),
    (["--checkpoint=untuned", "--output=x", "--classes=a", "--vocabulary=b"], "either --classes"),
    (["--checkpoint=untuned", "--output=x", "--classes=a", "--size=64"], "wanted WIDTHxHEIGHT"),
    (["--checkpoint=untuned", "--output=x", "--classes=a", "--format=tflite"],
     "should be one of <onnx|stablehlo>"),
    (["--checkpoint=untuned", "--output=https://x.org/y", "--classes=a"], "is an address"),
    (["--checkpoint=untuned", "--output=taken", "--classes=a"], "taken exists"),
])
def test_wrong_flags_end_in_a_sentence_before_anything_is_loaded(flags, sentence, tmp_path):
    (tmp_path / "taken").write_text("")
    done = command(tmp_path, *flags)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["taken"]


def command(place, *flags):
    root = str(pathlib.Path(mc.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "maskclippp_jax", "export", "--config=quickstart", *flags],
        capture_output=True, text=True, cwd=place,
        env=os.environ | dict(PYTHONPATH=root, JAX_PLATFORMS="cpu"))


def test_sizes_that_are_no_multiples_name_the_nearest(tiny, tmp_path):
    with pytest.raises(ValueError, match="wanted multiples of the 8 pixels .* such as 96x64"):
        tiny.export(tmp_path / "x", CLASSES, sizes=[(100, 64)])
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_missing_are_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: (
        None if name in ("onnxruntime", "flatbuffers") else find(name)))
    for kind, package in (("onnx", "onnxruntime"), ("stablehlo", "flatbuffers")):
        with pytest.raises(ValueError, match=f"format {kind} needs {package}; pip install"):
            exporting.Wishes(kind).check()


def test_wishes_that_cannot_be_are_refused():
    for wishes, sentence in ((dict(format="tflite"), "wanted onnx or stablehlo"),
                             (dict(dtype="bfloat16"), "take float16"),
                             (dict(dtype="int8"), "wanted float32, float16, bfloat16"),
                             (dict(num_masks=0), "got 0 for masks, wanted a whole number of at l"),
                             (dict(num_masks="5"), "got '5' for masks, wanted a whole number"),
                             (dict(batch=-1), "got -1 for batch, wanted a whole number of at l"),
                             (dict(batch=1.5), "got 1.5 for batch, wanted a whole number of at le"),
                             (dict(batch=True), "got True for batch, wanted a whole number"),
                             (dict(sizes="512"), "got sizes='512', wanted pairs of width and hei"),
                             (dict(sizes=512), "got sizes=512, wanted pairs of width and height"),
                             (dict(sizes=(64, 64)), "wanted pairs of width and height in whole pi"),
                             (dict(sizes=[(1, 2, 3)]), "wanted pairs of width and height in whole"),
                             (dict(sizes=[(0, 64)]), "wanted pairs of width and height in whole p"),
                             (dict(sizes=[(64.0, 64)]), "wanted pairs of width and height in w")):
        with pytest.raises(ValueError, match=sentence):
            exporting.Wishes(**wishes).check()


def test_models_and_generators_without_an_exported_form_are_refused(tiny, tmp_path):
    generator = mc.load_generator(
        tiny_generators.write_mask2former_folder(tmp_path / "generator"), objectness=0)
    with pytest.raises(ValueError, match="of generators only an EoMT can; .* eomt-l-640"):
        type(tiny)(tiny._namer, generator).export(tmp_path / "x", CLASSES)
    naflex = copy.copy(tiny._namer)
    naflex.config = tiny.config.copy_and_resolve_references()
    naflex.config.eval.max_tokens = 64
    with pytest.raises(ValueError, match="at most 64 patches .NaFlex.*set --config.eval.max_tok"):
        type(tiny)(naflex).export(tmp_path / "x", CLASSES)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("wish", [dict(sizes="512"), dict(sizes=512), dict(sizes=[(1, 2, 3)]),
                                  dict(num_masks="5")])
def test_wrong_types_from_python_are_refused_before_the_work(wish, tiny, tmp_path):
    with pytest.raises(ValueError, match="wanted (pairs of width|a whole number)"):
        tiny.export(tmp_path / "x", CLASSES, **wish)
    assert not (tmp_path / "x").exists()


def test_examples_of_the_help_write_folders():
    code = (pathlib.Path(mc.__file__).parent / "commands/export.py").read_text()
    outputs = re.findall(r"--output=(\S+)", ast.get_docstring(ast.parse(code)))
    assert len(outputs) == 3 and not any("." in name for name in outputs)


@pytest.mark.slow
def test_the_command_writes_a_folder_whose_example_runs(files, tmp_path):
    done = command(tmp_path, "--checkpoint=untuned", "--generator=quickstart", "--output=away",
                   "--classes=" + ";".join(CLASSES))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("largest difference") == 5 and "for 78 classes" in done.stderr
    named = subprocess.run([sys.executable, "away/run.py", *files[0]], capture_output=True,
                           text=True, cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    assert named.stdout.startswith("mask 0: ")
