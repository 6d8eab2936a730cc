"""Pictures and label maps from a user's disk, whatever form they have."""

import pathlib
import struct
import typing
import zlib

import numpy as np
from PIL import Image, ImageOps

# What Pillow raises for files that are cut short or not what their header says.
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError,
               OverflowError, struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: str) -> np.ndarray:
    """A picture as uint8 [H, W, 3] RGB, upright.

    Grey is repeated, 16 bits are divided by 257 (so that white stays white), CMYK and palettes are
    converted, transparency is laid over white, and the EXIF orientation is applied. Of an animation
    it is the first picture.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no picture, cut short, or with numbers that are no brightness.
    """
    return _read(path, _as_rgb)


def read_label_map(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """A label map as int32 [H, W]: the stored numbers (indices of a palette, not its colours).

    Args:
      path: PNG or TIFF of 1, 2, 4, 8 or 16 bits a pixel, or with a palette.
      size: (height, width) its picture has; None: any.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a colour picture, a format that changes numbers, or another size.
    """
    label = _read(path, _as_labels)
    if size is not None and label.shape != tuple(size):
        raise ValueError(f"the label map {path} has {label.shape[1]}x{label.shape[0]} pixels, its "
                         f"picture {size[1]}x{size[0]}; give one of the same size")
    return label


class _Refused(Exception):
    """Pillow can read the picture, we cannot use it."""


def _read(path: str, convert: typing.Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with Image.open(path) as picture:
            return convert(picture)
    except _Refused as error:
        raise ValueError(f"{path} {error}") from None
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None


def _as_rgb(picture: Image.Image) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        grey = np.asarray(picture)
        # Mode "I" has 32 bits; Pillow also gives it to 16-bit files of some formats.
        if picture.mode == "F" or grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise _Refused(f"has pixels of 32 bits (mode {picture.mode}), wanted a picture of 8 or "
                           "16 bits a channel")
        grey = ((grey.astype(np.int32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def _as_labels(picture: Image.Image) -> np.ndarray:
    if picture.format not in ("PNG", "TIFF"):
        raise _Refused(f"is a {picture.format} file, which may change numbers; save label maps as "
                       "PNG")
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise _Refused(f"is a colour picture or has fractions (mode {picture.mode}), wanted a "
                       "label map: a PNG with one integer a pixel")
    # Pillow spreads 2 and 4 bits of grey over 0 ... 255; only the form in the file tells.
    form = picture.tile[0][3] if picture.tile else ""
    form = form if isinstance(form, str) else form[0]
    if form.endswith("I"):
        raise _Refused("stores its numbers inverted (0 is white); save label maps as PNG")
    spread = {"L;2": 85, "L;4": 17}.get(form, 1)
    return np.array(picture).astype(np.int32) // spread
