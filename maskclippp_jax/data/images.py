"""Pictures and label maps from a user's disk, whatever form they have."""

import pathlib

import numpy as np
from PIL import Image, ImageOps


def read_image(path: str) -> np.ndarray:
    """A picture as uint8 [H, W, 3] RGB, upright.

    Grey is repeated, 16 bits are scaled to 8, CMYK and palettes are converted, transparency is laid
    over white, and the EXIF orientation is applied.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no picture, or cut short.
    """
    with _open(path) as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16") or picture.mode == "I":
            grey = np.asarray(picture).astype(np.int64)
            grey = np.clip(grey // 257 if grey.max(initial=0) > 255 else grey, 0, 255)
            return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        return np.asarray(picture.convert("RGB"))


def read_label_map(path: str, size: tuple[int, int]) -> np.ndarray:
    """A label map as int32 [H, W]: the stored numbers (indices of a palette, not its colours).

    Args:
      path: PNG of 1, 8 or 16 bits, or with a palette.
      size: (height, width) of its picture.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a colour picture, or of another size.
    """
    with _open(path) as picture:
        if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
            raise ValueError(f"{path} is a colour picture (mode {picture.mode}), wanted a label map: a "
                             "PNG with one number a pixel")
        label = np.asarray(picture).astype(np.int32)
    if label.shape != tuple(size):
        raise ValueError(f"the label map {path} has {label.shape[1]}x{label.shape[0]} pixels, its "
                         f"picture {size[1]}x{size[0]}; give one of the same size")
    return label


def _open(path: str) -> Image.Image:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None
    return picture
