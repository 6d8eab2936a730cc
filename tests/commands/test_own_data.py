"""The commands of docs/own-data.md, as they stand there, on a few small pictures."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
from PIL import Image

from maskclippp_jax.data import scenes

ROOT = pathlib.Path(__file__).parents[1]
# The documented configuration with a tiny model, instead of a download.
SMALL = '''
from configs import own_data
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


def test_the_documented_commands_tune_evaluate_and_predict(tmp_path):
    draw_pictures(tmp_path / "own")
    (tmp_path / "small.py").write_text(SMALL)
    text = (ROOT / "docs" / "own-data.md").read_text()
    commands = re.search(r"```sh\n(.*?)```", text, re.S)[1].replace("\\\n", " ").splitlines()
    assert [shlex.split(c)[2] for c in commands] == [
        f"maskclippp_jax.{name}" for name in ("prepare", "train", "evaluate", "predict")]
    environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT), COLUMNS="120",
                       XLA_FLAGS="--xla_backend_optimization_level=0")  # sooner compiled
    for command in commands:
        line = [word.replace("configs/own_data.py", "small.py") for word in shlex.split(command)]
        assert line[0] == "python"
        done = subprocess.run([sys.executable, *line[1:]], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
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
