"""What today's version writes, for a test of later ones: python -m tests.stored

Makes tests/fixtures/stored.zip: a run of two steps, the same model converted, its data set and a
bundle of masks. To be made anew, under another name beside the old one, only when a format changes
on purpose; the old one must still be read then, or be refused in a sentence.
"""

import pathlib
import sys
import tempfile
import zipfile

import numpy as np

from maskclippp_jax.data import build, bundle_writer, images, records
from maskclippp_jax.vocabulary import Vocabulary
from tests import whole_runs

FILE = pathlib.Path(__file__).parent / "fixtures/stored.zip"
SIZE = (24, 32)
NAMES = "red thing\ngreen, green stuff\nblue\n"


def labels_of(number: int) -> np.ndarray:
    """Stripes [H, W] uint8 of three classes."""
    stripes = np.repeat((np.arange(4) + number) % 3, SIZE[1] // 4)
    return np.tile(stripes.astype(np.uint8), (SIZE[0], 1))


def record_of(number: int) -> list[dict]:
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)
    picture = images.encode_png(colours[labels_of(number)])
    return [records.semantic_record(picture, f"p{number}", labels_of(number), [True] * 3)]


def config() -> str:
    """The tiny configuration of `whole_runs`, still smaller."""
    text = whole_runs.CONFIG
    for old, new in (("width=32, depth=2", "width=16, depth=2"), ("mlp_width=48", "mlp_width=16"),
                     ("embed_dim=16", "embed_dim=8"), ("32, 1, 2, 16,", "16, 1, 2, 8,"),
                     ("LinearSimilarityConfig(1, 16)", "LinearSimilarityConfig(1, 8)"),
                     ("batch_size = 8\n    config.train.steps = 12",
                      "batch_size = 2\n    config.train.steps = 2"),
                     ("checkpoint_every = 4", "checkpoint_every = 2")):
        assert old in text, old
        text = text.replace(old, new)
    return text


def make(place: pathlib.Path) -> None:
    (place / "tiny.py").write_text(config())
    vocabulary = Vocabulary.from_text(NAMES, "own names")
    build.build(str(place / "data"), "scenes_seen", vocabulary, "semantic",
                build.Reading({"train": [0, 1, 2]}, record_of), description="test", own_names=True)
    done = whole_runs.train(place, "run")
    assert done.returncode == 0, done.stderr
    for layout in ("ours", "maskclippp"):
        done = whole_runs.command(place, "convert", f"--source={place}/run", f"--layout={layout}",
                                  f"--output={place}/{layout}.safetensors")
        assert done.returncode == 0, done.stderr
    for kind in ("binary", "logits"):
        prepared = dict(loader_min=None, loader_max=None, short_side=None, multiple=4)
        writer = bundle_writer.Writer(
            place / kind, masks=kind, classes=dict(kind="none"), generator=dict(name="test"),
            preparation=None if kind == "binary" else prepared)
        masks = labels_of(0)[::4, ::4] == np.arange(3)[:, None, None]
        if kind == "binary":
            writer.add("p0", labels_of(0) == np.arange(3)[:, None, None], (SIZE,))
        else:
            writer.add("p0", np.where(masks, 4.0, -4.0), (SIZE,) * 4)
        writer.finish()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        make(place)
        with zipfile.ZipFile(FILE, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(place.rglob("*")):
                name = str(file.relative_to(place))
                if file.is_file() and "tensorboard" not in name:
                    archive.write(file, name)
    print(f"wrote {FILE}, {FILE.stat().st_size / 1e3:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
