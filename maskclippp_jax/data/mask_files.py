"""Masks of a picture in plain files, as other tools write them; `predict`, Python and
`masks from_files` read them here.

    x.json       masks with `segmentation`, COCO's run lengths or polygons: a list, or an object
                 with a list `annotations`, as SAM writes them; the order is kept, masks may overlap
                 or be empty. Of a list `images` file names say whose masks they are, if there are
                 several, and for which size polygons are; other fields do not matter
    x.png, .tif  label maps: each number is a mask, ascending, but those that mean nothing; see
                 `label_maps`. Of colour pictures the number is R + 256 G + 65536 B
    x.npy        a label map [H, W] of integers, or masks [N, H, W] of bool, of 0 and 1 (or 255), or
                 of shares in 0 ... 1
    x.npz        one such array, or masks [H, W] each under a name of its own
    x/           a folder of pictures, in the order of their names: a mask each, what is not black,
                 or of cut-outs what is not transparent; masks may overlap

These are the rules of MaskCLIP++'s reference, but that an empty list is a picture without masks,
and that there 255 is a mask like any other (`nothing=()`).
"""

import collections
import io
import json
import pathlib
import re
import typing

import numpy as np
from etils import epath

from maskclippp_jax.data import bundles, coco_files, images, label_maps
from maskclippp_jax.data.prepare import paths
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import storage, typed

ENDINGS = (".json", ".png", ".npy")  # of files that are written
_MAPS = (".png", ".tif", ".tiff")
_READ = (".json", *_MAPS, ".npy", ".npz")
_LARGEST = 2**33  # bytes of the masks of a picture that are taken apart


class _Mask(typing.TypedDict):
    segmentation: list | dict
    id: typing.NotRequired[typing.Any]


class _Masks(typing.TypedDict):
    images: typing.NotRequired[typing.Any]  # of several see `of_each_picture`
    annotations: list[_Mask]


class _OfPicture(typing.TypedDict):
    image_id: typed.Id | str
    segmentation: typing.NotRequired[list | dict | None]


class _Listed(typing.TypedDict):
    images: list[coco_files.Image]
    annotations: list[_OfPicture]


def read(path: str, size: tuple[int, int], picture: str | None = None) -> np.ndarray:
    """What a file or folder of masks holds.

    Args:
      path: see above.
      size: height and width of the picture, for polygons and where there is no mask.
      picture: its path or id, for a JSON of several; None: nothing tells.

    Returns:
      A label map [H, W] int32, or masks [n, H, W], bool or shares in 0 ... 1; of any size.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: an unknown ending, or another content.
    """
    place, suffix = storage.path(path), _suffix_of(path)
    if suffix == "folder":
        masks = [images.decode_mask(f.read_bytes(), str(f)) for f in _pictures_in(place)]
        other = next((m.shape for m in masks if m.shape != masks[0].shape), None)
        if other:
            raise ValueError(f"the masks in {path} have {masks[0].shape[1]}x{masks[0].shape[0]} "
                             f"pixels and {other[1]}x{other[0]}; give masks of one size")
        return np.stack(masks) if masks else np.zeros((0, *size), bool)
    if suffix == ".json":
        rows = typed.decode(label_maps.content_of(path), list[_Mask] | _Masks, path)
        if isinstance(rows, dict):
            rows = _of_one(rows, path, picture)
            check_sizes(rows, size, f"the masks in {path}")
        return decode_all([row["segmentation"] for row in rows], size, f"{path}, mask")
    if suffix in _MAPS:
        return images.decode_segments(label_maps.content_of(path), path)[0]
    array = _read_arrays(path) if suffix == ".npz" else label_maps.read_array(path)
    return of_array(array, path, lowest=-2**31)


def of_array(array: np.ndarray, what: str, lowest: int = 0) -> np.ndarray:
    """An array of masks as `read` returns it.

    Args:
      array: [H, W] of integers or bool, or [N, H, W] (or [N, 1, H, W], as PyTorch's programs have
        them) of bool, of 0 and 1 or of 0 and 255, or of shares.
      what: it is, for messages.
      lowest: number that a label map may hold; those below 0 mean nothing.

    Raises:
      ValueError: another shape, or other numbers.
    """
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "iub":
        if array.size:
            images.check_shape(*array.shape, what)
        return label_maps.checked(array, what, lowest=lowest)
    if array.ndim != 3 or array.dtype.kind not in "iubf":
        raise ValueError(f"{what}: an array of {array.dtype} of shape {array.shape}, wanted a "
                         "label map [H, W] of integers, or masks [N, H, W] of bool or of shares in "
                         "0 ... 1")
    images.check_shape(*array.shape[1:], what)
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(f"{what}: numbers in {low:g} ... {high:g}, wanted shares in 0 ... 1; "
                             "take the sigmoid of logits first")
        return array
    if array.dtype != bool and not (low in (0, high) and high in (0, 1, 255)) or (
            high == 255 and ((array > 0) & (array < 255)).any()):
        raise ValueError(f"{what}: an array of {array.dtype} with numbers in {low} ... {high}, "
                         "wanted bool, 0 and 1, or shares in 0 ... 1")
    return array > 0


def read_masks(path: str, size: tuple[int, int], nothing: typing.Sequence[int] | None = None,
               picture: str | None = None) -> np.ndarray:
    """The masks of a picture: [n, H, W] bool of any size; of shares those above 0.5.

    Args:
      path, size, picture: see `read`.
      nothing: numbers of label maps that mean nothing; None: see `label_maps`.

    Raises:
      FileNotFoundError, ValueError: see `read`.
    """
    found = read(path, size, picture)
    if found.ndim == 3:
        return found if found.dtype == bool else found > 0.5
    numbers = label_maps.masks_in(found, nothing, path)
    if len(numbers) * found.size > _LARGEST:
        raise ValueError(f"{path} looks like a photograph: it holds {len(numbers)} different "
                         f"values, wanted a label map with at most {_LARGEST // found.size} at "
                         "its size")
    return found[None] == numbers[:, None, None]


def check(path: str, size: tuple[int, int]) -> None:
    """Sees, without reading masks, whether they are there and may be those of a picture.

    Args:
      path: see above.
      size: height and width of the picture.

    Raises:
      FileNotFoundError, ValueError: they are not.
    """
    suffix = _suffix_of(path)
    if suffix in _MAPS:
        images.check_label_map(path, size)
    for file in _pictures_in(storage.path(path)) if suffix == "folder" else ():
        found = images.header_size(str(file))
        if found != size:
            raise ValueError(f"the mask {file} has {found[1]}x{found[0]} pixels, its picture "
                             f"{size[1]}x{size[0]}; give masks of the picture's size")


def of_each_picture(path: str) -> dict[str, list[dict]] | None:
    """The masks of several pictures in one JSON of COCO's form, by the pictures' file names.

    Returns:
      Rows with `segmentation`, which `decode_all` takes, and, where the file tells it, with
      `picture_size`, which `check_sizes` compares; None: the file is no such JSON.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged one.
    """
    if _suffix_of(path) != ".json":
        return None
    data = label_maps.content_of(path)
    if b'"images"' not in data:
        return None
    content = typed.decode(data, _Listed, path)
    names = {row["id"]: row.get("file_name") or str(row["id"]) for row in content["images"]}
    for what, values in (("id", [row["id"] for row in content["images"]]),
                         ("file_name", [names[row["id"]] for row in content["images"]])):
        value, count = collections.Counter(values).most_common(1)[0] if values else (None, 0)
        if count > 1:
            raise ValueError(f"{path} lists {count} pictures of the {what} {value}; give each one "
                             "of its own")
    sizes = {row["id"]: _size_in(row) for row in content["images"]}
    found: dict[str, list[dict]] = {name: [] for name in names.values()}
    for row in content["annotations"]:
        if row["image_id"] not in names:
            raise ValueError(f"{path} has a mask of the picture {row['image_id']}, which it does "
                             "not list")
        found[names[row["image_id"]]].append(dict(
            segmentation=row.get("segmentation") or [], **sizes[row["image_id"]]))
    return found


def check_sizes(rows: typing.Sequence[typing.Mapping], size: tuple[int, int], what: str) -> None:
    """Sees that polygons are for a picture of this size (height, width).

    Args:
      rows: of `of_each_picture`; those without `picture_size` fit, and run lengths, which have a
        size of their own.
      size: of the picture.
      what: the masks are, for messages.

    Raises:
      ValueError: they are for one of another size.
    """
    for row in rows:
        height, width = row.get("picture_size", size)
        if (height, width) != tuple(size) and isinstance(row["segmentation"], list):
            raise ValueError(f"{what} are of a picture of {width}x{height} pixels, this one has "
                             f"{size[1]}x{size[0]}; give that one, or masks of this size")


def _of_one(content: _Masks, path: str, picture: str | None) -> list[dict]:
    """The rows of one picture, see `of_each_picture`."""
    listed = content.get("images")
    if not isinstance(listed, list) or len(listed) < 2:
        size = _size_in(listed[0]) if listed and isinstance(listed, list) else {}
        return [dict(segmentation=row["segmentation"], **size) for row in content["annotations"]]
    of_each = of_each_picture(path)
    found = paths.Paths(of_each).find(picture) if picture else None
    if found is None:
        raise ValueError(f"{path} has masks of {bundles.some(list(of_each))}, " + (
            f"none of which is {picture}; list it there" if picture else "and nothing tells which "
            "is this one; give the picture by its path") + ", or give a file of its masks alone")
    return found[1]


def _size_in(picture: typing.Any) -> dict[str, tuple[int, int]]:
    size = [picture.get(k) if isinstance(picture, dict) else None for k in ("height", "width")]
    is_size = all(isinstance(n, int | float) and n > 0 for n in size)
    return dict(picture_size=tuple(size)) if is_size else {}


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


def _suffix_of(path: str) -> str:
    """Of the path of masks; "folder" for one."""
    if storage.path(path).is_dir():
        return "folder"
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in _READ:
        if not suffix:
            raise FileNotFoundError(f"no folder of masks {path}")
        raise ValueError(f"{path} ends in {suffix!r}, wanted one of {', '.join(_READ)}, or a "
                         "folder of masks")
    if not storage.path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    return suffix


def _pictures_in(folder: epath.Path) -> list[epath.Path]:
    """Files of masks in the order of their names, 2 before 10.

    Raises:
      ValueError: there are pictures, but none in a format that masks are read from.
    """
    number = lambda file: [int(part) if part.isdecimal() else part
                           for part in re.split(r"(\d+)", file.name)]
    files = sorted((f for f in folder.iterdir() if not f.name.startswith(".")), key=number)
    found = [f for f in files if f.suffix.lower() in _MAPS]
    others = [f.name for f in files if f.suffix.lower() in (*images.endings(), ".gif", ".pgm")]
    if others and not found:
        raise ValueError(f"{folder} holds {bundles.some(others)}, wanted masks that end in "
                         f"{', '.join(_MAPS)}; save them as PNG")
    return found


def _read_arrays(path: str) -> np.ndarray:
    """The array of a .npz file, or masks of an array each."""
    try:
        with np.load(io.BytesIO(label_maps.content_of(path)), allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except Exception as error:  # zipfile, zlib and Python's parser of headers: anything may come
        raise ValueError(f"{path} is no npz file of arrays ({error})") from None
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    each = list(arrays.values())
    if not each or any(a.ndim != 2 or a.shape != each[0].shape for a in each):
        told = ", ".join(f"{name} {a.shape}" for name, a in list(arrays.items())[:4])
        raise ValueError(f"{path} holds {told or 'no array'}, wanted one array, or masks [H, W] "
                         "of one size")
    return np.stack(each)


def _as_npy(labels: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, labels)
    return data.getvalue()
