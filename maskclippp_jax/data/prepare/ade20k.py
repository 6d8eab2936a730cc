"""ADE20K-150 (SceneParse150) from the archive of its owners, or the folder it unpacks to.

Semantic label maps are 8-bit grey: 0 is "other objects", so nothing, and class = pixel - 1.
"""

import functools
import io
import pathlib
import posixpath
import typing
import zipfile

import numpy as np
from PIL import Image, ImageOps

from maskclippp_jax.data import records
from maskclippp_jax.vocabulary import Vocabulary

EXPECTED = ("ADEChallengeData2016.zip, or the folder ADEChallengeData2016/ with "
            "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png")
_SPLITS = {"train": "training", "validation": "validation"}


def read(raw_dir: str | None) -> tuple[dict[str, typing.Sequence], typing.Callable]:
    """Pairs pictures and label maps by stem.

    Raises:
      FileNotFoundError: neither archive nor folder, or a picture without a label map.
    """
    root = _find(raw_dir)
    members = _members(root)
    splits = {}
    for split, folder in _SPLITS.items():
        base = f"ADEChallengeData2016/{{}}/{folder}/"
        labels = {_stem(m): m for m in members if m.startswith(base.format("annotations"))}
        images = {_stem(m): m for m in members if m.startswith(base.format("images"))}
        alone = sorted(set(images) ^ set(labels))
        if alone:
            raise FileNotFoundError(
                f"{root}: {len(alone)} pictures or label maps of {folder} have no partner, e.g. "
                f"{alone[0]}; unpack or download the archive again")
        splits[split] = [(str(root), stem, images[stem], labels[stem]) for stem in sorted(images)]
    return splits, make_record


def make_record(item: tuple[str, str, str, str]) -> dict:
    root, stem, image_name, label_name = item
    with Image.open(io.BytesIO(_bytes(root, label_name))) as picture:
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{label_name} in {root} has mode {picture.mode}, wanted 8-bit grey")
        label = np.asarray(picture).astype(np.uint8) - np.uint8(1)  # 0 becomes 255: nothing
    image = rgb_bytes(_bytes(root, image_name), f"{image_name} in {root}")
    return records.semantic_record(image, stem, label, _is_thing())


@functools.lru_cache
def _is_thing():
    return Vocabulary.shipped("ade20k_150").is_thing


def rgb_bytes(data: bytes, name: str) -> bytes:
    """Encoded picture that any decoder reads as upright RGB: as is, or encoded anew without loss.

    Raises:
      ValueError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            upright = picture.getexif().get(0x0112, 1) == 1
            if picture.mode in ("RGB", "L") and upright:
                return data
            rgb = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} cannot be decoded ({error}); download the archive "
                         "again") from None
    return records.encode_png(np.asarray(rgb))


def _find(raw_dir):
    if not raw_dir:
        raise ValueError(f"got no --raw_dir; give the folder that holds {EXPECTED}")
    folder = pathlib.Path(raw_dir)
    for candidate in (folder / "ADEChallengeData2016.zip", folder / "ADEChallengeData2016"):
        if candidate.exists():
            return candidate.absolute()
    if folder.name == "ADEChallengeData2016" and folder.is_dir():
        return folder.absolute()
    raise FileNotFoundError(f"{folder} does not hold {EXPECTED}")


def _members(root: pathlib.Path) -> list[str]:
    if root.is_dir():
        names = [f"ADEChallengeData2016/{p.relative_to(root).as_posix()}"
                 for p in root.rglob("*") if p.is_file()]
    else:
        try:
            names = _archive(str(root)).namelist()
        except zipfile.BadZipFile:
            raise ValueError(f"{root} is no zip archive, or was cut short; download it "
                             "again") from None
    return [n for n in names if n.endswith((".jpg", ".png"))
            and not posixpath.basename(n).startswith("._") and "__MACOSX" not in n]


def _bytes(root: str, member: str) -> bytes:
    if pathlib.Path(root).is_dir():
        return (pathlib.Path(root).parent / member.replace(
            "ADEChallengeData2016", pathlib.Path(root).name, 1)).read_bytes()
    return _archive(root).read(member)


@functools.lru_cache(maxsize=2)
def _archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _stem(member: str) -> str:
    return posixpath.splitext(posixpath.basename(member))[0]
