"""Real runs of a tiny model in processes of their own, for the tests of whole commands."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from maskclippp_jax.data import build, images, records, scenes
from maskclippp_jax.vocabulary import Vocabulary
from tests import forked, xla_flags

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = '''
from maskclippp_jax.configs import quickstart
from maskclippp_jax.models import eva_vit, maskclippp, similarity, text
def get_config():
    config = quickstart.get_config().unlock()
    full = text.TextConfig.quickstart()
    config.model = maskclippp.MaskCLIPppConfig(
        eva_vit.EvaViTConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2,
                             mlp_width=48, embed_dim=16, mask_layers=1),
        text.TextConfig(full.context_length, full.vocab_size, 32, 1, 2, 16, words=full.words),
        similarity.LinearSimilarityConfig(1, 16))
    config.weights = "random"
    config.train.size = 32
    config.train.short_sides = (32, 40)
    config.train.batch_size = 8
    config.train.steps = 12
    config.checkpoint_every = 4
    config.log_every = 2
    config.eval.batch_size = 8
    return config.lock()
'''


def make_place(folder):
    """A folder with a config and prepared data sets of 24 and 21 small scenes.

    The one for training has a vocabulary of its own, as a user's data have; that for evaluation has
    scenes of two sizes.
    """
    (folder / "tiny.py").write_text(CONFIG)
    for name, split, count in (("scenes_seen", "train", 24), ("scenes", "validation", 21)):
        vocabulary, own = Vocabulary.shipped(name), split == "train"
        if own:
            vocabulary = dataclasses.replace(vocabulary, name="own names")
        build.build(str(folder / "data"), name, vocabulary, "semantic",
                    build.Reading({split: list(range(count))}, draw[name]), description="test",
                    own_names=own)
    return folder


def draw_record(name, number):
    vocabulary = Vocabulary.shipped(name)
    names = [c[0] for c in vocabulary.classes]
    scene = scenes.draw_scene(np.random.default_rng(number), num_things=(1, 2), classes=names,
                              size=96 if name == "scenes" and number % 4 == 0 else 64)
    ids = np.array([names.index(c) if c in names else 255 for c in scenes.CLASSES])
    return [records.semantic_record(images.encode_png(scene.image), f"s{number}", ids[scene.label],
                                    vocabulary.is_thing)]


def draw_seen(number):
    return draw_record("scenes_seen", number)


def draw_all(number):
    return draw_record("scenes", number)


draw = dict(scenes_seen=draw_seen, scenes=draw_all)


def environment(devices=1):
    """Of processes that are to see so many devices."""
    return dict(os.environ, JAX_PLATFORMS="cpu", COLUMNS="120", PYTHONPATH=str(ROOT),
                XLA_FLAGS=xla_flags.devices(devices))


def command(place, name, *flags, devices=1, wait=True, cwd=ROOT):
    line = [name]
    # The others find the configuration in the run.
    if name in ("train", "evaluate") and not any(f.startswith("--config=") for f in flags):
        line += [f"--config={place}/tiny.py", f"--config.data_dir={place}/data"]
    line += flags
    if wait:
        return forked.run(*line, env=environment(devices), cwd=cwd)
    return subprocess.Popen([sys.executable, "-m", "maskclippp_jax", *line], cwd=cwd, text=True,
                            env=environment(devices), stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def train(place, workdir, *flags, **kw):
    return command(place, "train", f"--workdir={place}/{workdir}", *flags, **kw)


def metrics(place, workdir):
    return [json.loads(line)
            for line in (place / workdir / "metrics.jsonl").read_text().splitlines()]


def together(place, name, *flags, processes=2, devices=4):
    """The same command in several processes that work together; not waited for."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [command(place, name, *flags, f"--distributed={address},{processes},{i}",
                    devices=devices, wait=False) for i in range(processes)]


def workers_of(process):
    """Process numbers of those that read data for it."""
    return [int(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()
            and f"PPid:\t{process.pid}\n" in _read(p / "status")
            and "spawn_main" in _read(p / "cmdline")]


def is_running(pid):
    status = _read(pathlib.Path(f"/proc/{pid}/status"))
    return bool(status) and "State:\tZ" not in status


def _read(file):
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""
