"""What the command `masks` does: looks at bundles, makes them from plain files and the reverse."""

import itertools
import pathlib
import shutil
import typing

import jax
import numpy as np

from maskclippp_jax.data import (
    bundle_writer,
    bundles,
    coco_files,
    mask_chain,
    mask_files,
    records,
    transforms,
)
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.models import resample
from maskclippp_jax.runtime import progress, storage

_BLOCK = 256  # pixels, side of what masks are enlarged to at once
_ROUNDING = 2  # pixels of the shorter side that masks may be off
_HALF = {"logits": 0, "probabilities": 127, "binary": 0}  # stored values above it are above 0.5


def describe(bundle: bundles.Bundle, source: records.Source | None, what: str
             ) -> tuple[list[tuple[str, str]], list[str]]:
    """Reads a whole bundle.

    Args:
      bundle: to be read.
      source: data set to compare it with, if any.
      what: its name, for messages.

    Returns:
      Names and values for people, and pictures of the data set that the bundle lacks.

    Raises:
      ValueError, FileNotFoundError: anything in it is wrong.
    """
    rows = [("masks", bundle.masks + ", float32" * bundle.float32
             + (f", stride {bundle.stride}" if bundle.stride else "")),
            ("generator", ", ".join(f"{k} {v}" for k, v in bundle.generator.items()))]
    if bundle.preparation:
        rows.append(("preparation", ", ".join(
            f"{k} {v}" for k, v in bundle.preparation.facts().items())))
    if bundle.version != transforms.Version():
        rows.append(("version of the pictures", f"{bundle.version}"))
    rows.append(("classes", bundle.kind + (f", {bundle.width} columns" if bundle.width else "")))
    missing = []
    if source:
        missing = bundle.check_pictures(records.sizes_of(source.records), what, allow_missing=True)
        found = f"{len(source.records) - len(missing)} of {len(source.records)}"
        rows.append((f"pictures of {what}",
                     found + (f", without {bundles.some(missing)}" if missing else "")))
        if bundle.vocabulary:
            known = source.vocabulary.seen_in(bundle.vocabulary)
            rows.append(("classes that its logits know by name", f"{known.sum()} of {len(known)}"))
    counts, covered, size = [], [], 0
    for name in progress.track(bundle.pictures, "reading"):
        masks = bundle.read(name).masks
        counts.append(len(masks))
        covered.append((masks > _HALF[bundle.masks]).any(0).mean() if len(masks) else 0.0)
        size += bundle_writer.file_of(bundle.folder, name).stat().length
    rows.append(("pictures", f"{len(counts)}"))
    if counts:
        rows += [("masks of a picture",
                  f"{min(counts)} ... {max(counts)}, mean {np.mean(counts):.1f}"),
                 ("pictures without any mask", f"{counts.count(0)}"),
                 ("share covered by a mask above 0.5", f"{100 * np.mean(covered):.1f} %"),
                 ("size on disk", f"{size / 1e6:.1f} MB")]
    return rows, missing


def from_files(folder: str, pattern: str, source: records.Source, what: str, *,
               nothing: typing.Sequence[int] | None, allow_missing: bool) -> int:
    """Writes a bundle of binary masks without classes.

    Args:
      folder: of the bundle.
      pattern: of the files, see `file_of`.
      source: the data set whose pictures the masks belong to.
      what: its name, for messages.
      nothing: numbers of label maps that mean nothing; None: see `label_maps`.
      allow_missing: whether pictures may be without a file; they are left out.

    Returns:
      How many pictures it has.

    Raises:
      FileNotFoundError: no file at all.
      ValueError: files are missing, damaged, or of pictures of another shape.
    """
    sizes = records.sizes_of(source.records)
    files = {name: file_of(pattern, name) for name in sizes}
    missing = [name for name, file in files.items() if not file.exists()]
    if len(missing) == len(files):
        raise FileNotFoundError(f"no file for any picture of {what}, such as "
                                f"{next(iter(files.values()))}; {{id}} in --masks stands for a "
                                "picture's id")
    if missing and not allow_missing:
        raise ValueError(f"there are no masks of {bundles.some(missing)} of the {len(files)} of "
                         f"{what} (such as {files[missing[0]]}); make them, or leave them out with "
                         "--allow_missing")
    place = pathlib.Path(folder)
    bundle_writer.refuse_finished(folder)
    if place.is_dir() and any(place.iterdir()):
        raise FileExistsError(f"{folder} holds other files; choose a new folder, or empty it")
    # Another command may follow after one that failed, so nothing is begun in the folder itself.
    growing = place.with_name(f".incomplete-{place.name}")
    with storage.locked(growing, f"another process is writing {folder}; wait until it has ended"):
        try:
            made = growing / "bundle"
            shutil.rmtree(made, ignore_errors=True)  # of a killed one
            writer = bundle_writer.Writer(made, masks="binary", classes=dict(kind="none"),
                                          generator=dict(name="files", pattern=pattern))
            for name in progress.track(sorted(set(files) - set(missing)), "converting"):
                masks = mask_files.read_masks(str(files[name]), sizes[name], nothing, name)
                _check_shape(masks.shape[1:], sizes[name], files[name])
                writer.add(name, masks, (sizes[name],))
            writer.finish()
            storage.sync_all(made)
            if place.exists():
                place.rmdir()  # an empty one
            made.rename(place)
            storage.sync(place.parent)
        finally:
            shutil.rmtree(growing, ignore_errors=True)
    return len(files) - len(missing)


def _check_shape(found: tuple[int, int], size: tuple[int, int], file: pathlib.Path) -> None:
    """Masks may be smaller than their picture, but have to show all of it."""
    (height, width), (h, w) = size, found
    if abs(h * width - w * height) > _ROUNDING * max(height, width):
        raise ValueError(f"the masks of {file} have {w}x{h} pixels and their picture "
                         f"{width}x{height}, another shape; give masks of the whole picture, as it "
                         "is shown")


def to_files(bundle: bundles.Bundle, pattern: str) -> None:
    """Writes the masks of a bundle at the size of their pictures, a file for each picture."""
    if file_of(pattern, "a").suffix not in mask_files.ENDINGS:
        raise ValueError(f"--masks={pattern} does not end in one of "
                         f"{', '.join(mask_files.ENDINGS)}")
    for name in progress.track(bundle.pictures, "converting"):
        file = file_of(pattern, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        masks = at_picture_size(bundle.read(name), bundle.pictures[name]["size"])
        mask_files.write_masks(file, masks[..., ::-1] if bundle.version.flipped else masks)


def write_pictures(source: records.Source, folder: str) -> None:
    """Writes the pictures of a data set as they are stored, as files named by their ids."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for i in progress.track(range(len(source.records)), "writing"):
        record = source.records[i]
        ending = ".png" if record["image"].startswith(b"\x89PNG") else ".jpg"
        storage.write(path / coco_files.file_of(records.id_of(record), ending), record["image"],
                      durable=False)


def file_of(pattern: str, image_id: str) -> pathlib.Path:
    """The file of a picture: {id} in the pattern stands for the id, encoded as in URLs."""
    return pathlib.Path(pattern.replace("{id}", coco_files.file_of(image_id, "")))


def at_picture_size(found: bundles.PictureMasks, size: typing.Sequence[int]) -> np.ndarray:
    """Soft masks [n, H, W] float32 of a picture, on the way that `mask_chain` describes."""
    if not len(found.masks):
        return np.zeros((0, *size), np.float32)
    stored = np.array(found.masks.shape[1:], np.int32)
    enlarged, kept = (stored if x is None else np.array(x, np.int32)
                      for x in (found.enlarged, found.kept))
    # Padded, and in blocks, so that pictures of many sizes need few programs.
    masks = jax.device_put(np.pad(found.masks, [(0, -n % multiple) for n, multiple in zip(
        found.masks.shape, (8, 16, 16))]))
    sizes, target = MaskSizes(stored, enlarged, kept), np.array(size, np.int32)
    full = np.empty((len(found.masks), *size), np.float32)
    for corner in itertools.product(*(range(0, side, _BLOCK) for side in size)):
        part = full[:, *(slice(start, start + _BLOCK) for start in corner)]
        block = _resize(masks, sizes, target, np.array(corner, np.int32))
        part[:] = np.asarray(block)[:len(part), :part.shape[1], :part.shape[2]]
    return full


@jax.jit
def _resize(masks, sizes, target, corner):
    return resample.resize_masks(mask_chain.probabilities(masks), *mask_chain.mask_taps(
        sizes, target, (_BLOCK, _BLOCK), corner))
