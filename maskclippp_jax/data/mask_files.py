"""Masks in plain files, one for each picture, as other tools write them.

    .json   list of objects with `segmentation`: COCO's run lengths or polygons; the order is kept,
            masks may overlap or be empty, other fields do not matter
    .png    each number is a mask, ascending, 0 and 255 as well; of colour pictures the number is
            R + 256 G + 65536 B
    .npy    a map of integers, likewise

These are the rules of MaskCLIP++'s reference, but that an empty list is a picture without masks.
"""

import io
import json
import pathlib

import cv2
import numpy as np
from PIL import Image

from maskclippp_jax.data import coco_files, images
from maskclippp_jax.metrics import instance
from maskclippp_jax.runtime import storage

ENDINGS = (".json", ".png", ".npy")


def read_masks(path: str, size: tuple[int, int]) -> np.ndarray:
    """The masks of a picture: [n, H, W] bool of any size.

    Args:
      path: of the file.
      size: height and width of the picture, for polygons and where a list is empty.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unknown ending, or another content.
    """
    file = pathlib.Path(path)
    if file.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {file.suffix!r}, wanted one of {', '.join(ENDINGS)}")
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    if file.suffix == ".json":
        return _read_run_lengths(file, size)
    labels = _read_array(file) if file.suffix == ".npy" else _read_png(file)
    return labels[None] == np.unique(labels)[:, None, None]


def write_masks(path: pathlib.Path, masks: np.ndarray) -> None:
    """Writes soft masks [n, H, W] in [0, 1] of a picture whole or not at all.

    JSON gets every mask where it is above 0.5; PNG and npy, which cannot hold overlaps, in each
    pixel the mask that is largest there, from 1, if it is above 0.5, else 0.

    Raises:
      ValueError: an unknown ending.
    """
    if path.suffix == ".json":
        data = json.dumps([dict(segmentation=instance.encode(m > 0.5), area=int((m > 0.5).sum()))
                           for m in masks]).encode()
    elif path.suffix in (".png", ".npy"):
        labels = np.zeros(masks.shape[1:], np.int32)
        if len(masks):
            labels = np.where(masks.max(0) > 0.5, masks.argmax(0) + 1, 0).astype(np.int32)
        data = _as_npy(labels) if path.suffix == ".npy" else _as_png(labels)
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}, wanted one of {', '.join(ENDINGS)}")
    storage.write(path, data)


def _read_run_lengths(file: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    try:
        rows = json.loads(file.read_text())
        masks = [instance.decode(coco_files.run_lengths(row["segmentation"], *size))
                 for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no list of objects with `segmentation` as COCO has it "
                         f"({error!r})") from None
    sizes = {m.shape for m in masks}
    if len(sizes) > 1:
        raise ValueError(f"{file} has masks of the sizes {sorted(sizes)[:3]}, wanted one size")
    return np.stack(masks) if masks else np.zeros((0, *size), bool)


def read_array(file: pathlib.Path) -> np.ndarray:
    """The content of a .npy file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another content.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    try:
        array = np.load(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is no array ({error})") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{file} holds several arrays, wanted a .npy file of one")
    return array


def _read_array(file: pathlib.Path) -> np.ndarray:
    labels = read_array(file)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ValueError(f"{file} holds {labels.dtype} of shape {labels.shape}, wanted a map of "
                         "integers [H, W]")
    return labels


def _read_png(file: pathlib.Path) -> np.ndarray:
    data = file.read_bytes()
    try:
        mode = Image.open(io.BytesIO(data)).mode
    except OSError:
        raise ValueError(f"{file} cannot be read as a picture") from None
    decode = images.decode_colors if mode in ("RGB", "RGBA") else images.decode_label_map
    return decode(data, str(file))


def _as_npy(labels: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, labels)
    return data.getvalue()


def _as_png(labels: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".png", labels.astype(np.uint16))
    assert ok
    return data.tobytes()
