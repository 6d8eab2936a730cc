"""Masks in plain files, one for each picture, as other tools write them.

    .json        list of objects with `segmentation`: COCO's run lengths or polygons; the order is
                 kept, masks may overlap or be empty, other fields do not matter
    .png, .npy   label maps: each number is a mask, ascending, but those that mean nothing; see
                 `label_maps`. Of colour pictures the number is R + 256 G + 65536 B.

These are the rules of MaskCLIP++'s reference, but that an empty list is a picture without masks,
and that there 255 is a mask like any other (`nothing=()`).
"""

import io
import json
import pathlib
import typing

import numpy as np

from maskclippp_jax.data import images, label_maps
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import storage, typed

ENDINGS = (".json", ".png", ".npy")
_LARGEST = 2**33  # bytes of the masks of a picture that are taken apart


class _Mask(typing.TypedDict):
    segmentation: list | dict
    id: typing.NotRequired[typing.Any]


class _Masks(typing.TypedDict):
    annotations: list[_Mask]


def read_masks(path: str, size: tuple[int, int], nothing: typing.Sequence[int] | None = None
               ) -> np.ndarray:
    """The masks of a picture: [n, H, W] bool of any size.

    Args:
      path: of the file.
      size: height and width of the picture, for polygons and where a list is empty.
      nothing: numbers of label maps that mean nothing; None: see `label_maps`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unknown ending, or another content.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {suffix!r}, wanted one of {', '.join(ENDINGS)}")
    if suffix == ".json":
        return _read_run_lengths(path, size)
    labels = label_maps.read(path)
    numbers = label_maps.masks_in(labels, nothing, path)
    if len(numbers) * labels.size > _LARGEST:
        raise ValueError(f"{path} looks like a photograph: it holds {len(numbers)} different "
                         f"values, wanted a label map with at most {_LARGEST // labels.size} at "
                         "its size")
    return labels[None] == numbers[:, None, None]


def write_masks(path: pathlib.Path, masks: np.ndarray) -> None:
    """Writes soft masks [n, H, W] in [0, 1] of a picture whole or not at all.

    JSON gets every mask where it is above 0.5; PNG and npy, which cannot hold overlaps, in each
    pixel the number, from 0, of the mask that is largest there if it is above 0.5, else nothing
    (see `label_maps`).

    Raises:
      ValueError: an unknown ending.
    """
    if path.suffix == ".json":
        data = json.dumps([dict(segmentation=run_lengths.encode(m > 0.5),
                                area=int((m > 0.5).sum())) for m in masks]).encode()
    elif path.suffix in (".png", ".npy"):
        labels = np.full(masks.shape[1:], -1, np.int32)
        if len(masks):
            labels = np.where(masks.max(0) > 0.5, masks.argmax(0), -1)
        encode = _as_npy if path.suffix == ".npy" else images.encode_png
        data = encode(label_maps.stored(labels))
    else:
        raise ValueError(f"{path} ends in {path.suffix!r}, wanted one of {', '.join(ENDINGS)}")
    storage.write(path, data, durable=False)


def _read_run_lengths(path: str, size: tuple[int, int]) -> np.ndarray:
    rows = typed.decode(label_maps.content_of(path), list[_Mask] | _Masks, path)
    rows = rows["annotations"] if isinstance(rows, dict) else rows
    return decode_all([row["segmentation"] for row in rows], size, f"{path}, mask")


def decode_all(segmentations: typing.Sequence, size: tuple[int, int], what: str) -> np.ndarray:
    """Segmentations of COCO as masks [n, H, W] bool of one size.

    Args:
      segmentations: of each mask, run lengths or polygons.
      size: height and width of the picture, for polygons and where there are none.
      what: a mask's name without its number, for messages.

    Raises:
      ValueError: one of them is damaged, or they differ in size.
    """
    masks = []
    for number, segmentation in enumerate(segmentations):
        try:
            of_any_size = isinstance(segmentation, typing.Mapping)
            code = run_lengths.read(segmentation, None if of_any_size else size)
        except ValueError as error:
            raise ValueError(f"{what} {number} {error}") from None
        if masks and tuple(code["size"]) != masks[0].shape:
            raise ValueError(f"{what} {number} is for {code['size'][1]}x{code['size'][0]} pixels, "
                             f"those before for {masks[0].shape[1]}x{masks[0].shape[0]}; give "
                             "masks of one size")
        if len(masks) * code["size"][0] * code["size"][1] > _LARGEST:
            raise ValueError(f"{what} {number}: there are {len(segmentations)} masks of "
                             f"{code['size'][1]}x{code['size'][0]} pixels, more than the memory "
                             "for them; give fewer, or smaller ones")
        images.check_shape(*code["size"], f"{what} {number}")
        masks.append(run_lengths.decode(code))
    return np.stack(masks) if masks else np.zeros((0, *size), bool)


def _as_npy(labels: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, labels)
    return data.getvalue()
