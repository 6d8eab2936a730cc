"""An installed wheel, outside of the project: the commands of docs/own-data.md as they stand there,
on a few small pictures, shipped configurations by name, and the API."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from maskclippp_jax import configs
from maskclippp_jax.data import scenes
from tests import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
# The documented configuration with a tiny model, instead of a download.
SMALL = '''
from maskclippp_jax.configs import own_data
from maskclippp_jax.models import eva_vit, maskclippp, similarity, text
def get_config(arg):
    config = own_data.get_config(arg).unlock()
    full = text.TextConfig.quickstart()
    config.model = maskclippp.MaskCLIPppConfig(
        eva_vit.EvaViTConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2,
                             mlp_width=48, embed_dim=16, mask_layers=1),
        text.TextConfig(full.context_length, full.vocab_size, 32, 1, 2, 16, words=full.words),
        similarity.LinearSimilarityConfig(len(config.templates), 16))
    config.weights = "random"
    config.train.size, config.train.short_sides = 32, (32, 40)
    config.train.steps, config.train.batch_size = 2, 2
    config.eval.loader_min, config.eval.short_side = 64, 32
    return config.lock()
'''


def draw_pictures(own):
    """Eight pictures with label maps, and two new ones without."""
    for folder in ("images", "labels", "new"):
        (own / folder).mkdir(parents=True)
    names = ["red one", "grey grass", "brown brick"]
    (own / "names.txt").write_text("red one, one\ngrey grass\nbrown brick\n")
    for i in range(10):
        scene = scenes.draw_scene(np.random.default_rng(i), num_things=(1, 1), classes=names)
        Image.fromarray(scene.image).save(own / ("images" if i < 8 else "new") / f"p{i}.png")
        if i < 8:
            ids = np.array([names.index(c) if c in names else 255 for c in scenes.CLASSES])
            Image.fromarray(ids[scene.label].astype(np.uint8)).save(own / f"labels/p{i}.png")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The programs of a new environment that has the wheel, and what it requires, no more."""
    folder = tmp_path_factory.mktemp("an environment")
    for name in ("maskclippp_jax", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name,
                        ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copyfile(file, folder / "source" / file.name)
    run = lambda *line: subprocess.run([sys.executable, "-m", *line], check=True,
                                       capture_output=True, timeout=300)
    run("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}",
        folder / "source")
    run("venv", "--without-pip", folder / "venv")
    python = folder / "venv/bin/python"
    run("pip", "--quiet", "--python", python, "install", "--no-deps", *folder.glob("*.whl"))
    site, = folder.glob("venv/lib/python*/site-packages")
    for file in required_files():
        if not (site / file.name).exists():
            (site / file.name).symlink_to(file)
    return python.parent


def required_files() -> set[pathlib.Path]:
    """Files and folders, as installed here, of all that requirements.txt asks for, and what that
    asks for in turn: packages of tests, and of extras, are not among them."""
    lines = [line.partition("#")[0].strip()
             for line in (ROOT / "requirements.txt").read_text().splitlines()]
    found, left = set(), [(Requirement(line), "") for line in lines if line]
    while left:
        wanted, extra = left.pop()
        if wanted.marker and not wanted.marker.evaluate(dict(extra=extra)):
            continue
        for extra in ("", *wanted.extras):
            if (key := (canonicalize_name(wanted.name), extra)) not in found:
                found.add(key)
                left += [(Requirement(line), extra)
                         for line in metadata.distribution(wanted.name).requires or ()]
    return {pathlib.Path(distribution.locate_file(file.parts[0]))
            for name, _ in found for distribution in [metadata.distribution(name)]
            for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}


def call(line, folder, code=0):
    environment = dict(os.environ, JAX_PLATFORMS="cpu", COLUMNS="120", HOME=str(folder),
                       XLA_FLAGS=xla_flags.devices(1))
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_documented_commands_tune_evaluate_and_predict(programs, tmp_path):
    draw_pictures(tmp_path / "own")
    (tmp_path / "small.py").write_text(SMALL)
    text = (ROOT / "docs" / "own-data.md").read_text()
    block = next(b for b in re.findall(r"```sh\n(.*?)```", text, re.S) if "maskclippp train" in b)
    commands = block.replace("\\\n", " ").splitlines()
    assert [shlex.split(c)[:2] for c in commands] == [
        ["maskclippp", name] for name in ("prepare", "train", "evaluate", "predict")]
    for command in commands:
        line = [word.replace("=own_data:", "=small.py:") for word in shlex.split(command)]
        call([programs / line[0], *line[1:]], tmp_path)
    assert len(list(tmp_path.glob("data/mine/**/*.png"))) == 2  # contact sheets
    logged = [json.loads(x) for x in (tmp_path / "runs/mine/metrics.jsonl").open()]
    assert len(logged) == 2 and "eval/mask_accuracy" in logged[-1]
    results = json.loads((tmp_path / "runs/mine_results/results.json").read_text())
    assert [m["name"] for m in results["models"]] == ["untuned", "mine"]
    assert results["protocol"]["pictures"] == 2
    for name in ("p8", "p9"):
        found = json.loads((tmp_path / f"named/{name}.json").read_text())
        assert {m["name"] for m in found["masks"]} <= {"red one", "grey grass", "brown brick"}
        assert (tmp_path / f"named/{name}.overlay.png").stat().st_size > 500


def test_a_wheel_has_configurations_by_name_and_the_api(programs, tmp_path):
    said = call([programs / "maskclippp", "train", "--config=coco_stuff_eva02_l14_336",
                 "--workdir=runs/x"], tmp_path, code=2)
    assert "maskclippp prepare coco_stuff_171" in said and not list(tmp_path.iterdir())
    listed = call([programs / "maskclippp", "convert", "--list"], tmp_path)
    assert "EVA02-CLIP-L-14-336" in listed and "eomt-l-640" in listed
    program = """
import numpy as np
import maskclippp_jax as mc
from maskclippp_jax import configs
print(mc.__file__, len(configs.names()))
model = mc.load("untuned", "quickstart")
print(model.name(np.zeros((64, 64, 3), np.uint8), mc.grid, ["red one", "grass"]).scores.shape)
"""
    said = call([programs / "python", "-c", program], tmp_path)
    place, count = said.splitlines()[0].rsplit(" ", 1)
    assert place.startswith(str(programs.parent)) and int(count) == len(configs.names())
    assert said.splitlines()[1] == "(16, 2)"
    assert [f.name for f in tmp_path.iterdir()] == [".cache"]  # embeddings of names
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "black.png")
    for _ in range(2):  # the second start reads what the first one kept
        call([programs / "maskclippp", "predict", "black.png", "--config=quickstart",
              "--checkpoint=untuned", "--classes=red one;grass", "--regions=grid",
              "--programs=programs"], tmp_path)
    found = json.loads((tmp_path / "named/black.json").read_text())
    assert len(found["masks"]) == 16
