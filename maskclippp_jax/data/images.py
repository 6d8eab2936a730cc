"""Pictures and label maps from a user's disk, whatever form they have.

A file of a few bytes can ask for any memory, so headers are looked at before pixels are decoded:
pictures have a largest number of pixels (`limit_pixels`).
"""

import functools
import importlib.util
import io
import re
import struct
import typing
import warnings
import zlib

import cv2
import numpy as np
from PIL import Image, ImageOps, features

from maskclippp_jax.runtime import storage

# Pillow's own limit, beyond which it only warns at first.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
_KIND, _WIDTH, _HEIGHT, _BITS, _WHITE = 254, 256, 257, 258, 262  # in headers of TIFF files
_COLORS = ("RGB", "RGBA", "LA")  # modes of label maps that are more than numbers
# What Pillow raises for files that are cut short or not what their header says.
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError,
               OverflowError, struct.error, zlib.error)
_WHOLE = 2**28  # pixels: 16384x16384
_PICTURE = "the picture"  # in messages, where nothing names it
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@functools.cache
def endings() -> tuple[str, ...]:
    """Endings of pictures that are read, small letters; HEIC only with the package pillow-heif."""
    more = [".avif"] * features.check("avif") + [".heic", ".heif"] * bool(
        importlib.util.find_spec("pillow_heif"))
    return (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", *more)


@functools.cache
def _reads_heif() -> bool:
    """Whether HEIC can be read; lets Pillow read it then."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _is_heif(content: typing.BinaryIO) -> bool:
    """Whether a file begins as those of iPhones do; its place is not moved."""
    head = content.read(12)
    content.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"hevc", b"mif1",
                                                   b"msf1")


def limit_pixels(count: int | None = None) -> int:
    """How many pixels a picture may have; sets it, in this process, if a number is given."""
    if count is not None:
        Image.MAX_IMAGE_PIXELS = count
    return Image.MAX_IMAGE_PIXELS


def check_shape(height: int, width: int, name: str) -> None:
    """Sees that a picture can be worked on.

    Raises:
      ValueError: it is too large.
    """
    if height * width > limit_pixels():
        raise _Unfit(f"{name} has {width}x{height} pixels, more than the {limit_pixels()} that "
                     "are decoded; if it is meant, give --max_pixels (in Python "
                     "data.images.limit_pixels), else make it smaller")


def check_whole(size: typing.Sequence[int], name: str) -> None:
    """Sees that a picture may be worked on as a whole, whatever `limit_pixels` says.

    Args:
      size: height and width.
      name: of the picture, for messages.

    Raises:
      ValueError: what is made of each pixel would ask for more than the memory.
    """
    if size[0] * size[1] > _WHOLE:
        raise ValueError(f"{name} has {size[1]}x{size[0]} pixels, more than the {_WHOLE} that are "
                         "looked at as a whole; give --tiles=1024 to predict or prepare (in Python "
                         "tiles=1024), or make it smaller")


def read_image(path: str) -> np.ndarray:
    """A picture as uint8 [H, W, 3] RGB, upright.

    Grey is repeated, 16 bits are divided by 257 (so that white stays white), CMYK and palettes are
    converted, transparency is laid over white, and the EXIF orientation is applied. Of an animation
    it is the first picture.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no picture, cut short, or with numbers that are no brightness.
    """
    return decode_image(_content(path), path)


def read_label_map(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """A label map as int32 [H, W]: the stored numbers (indices of a palette, not its colours).

    Args:
      path: PNG or TIFF of 1, 2, 4, 8 or 16 bits a pixel, or with a palette.
      size: (height, width) its picture has; None: any.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a colour picture, a format that changes numbers, or another size.
    """
    label = decode_label_map(_content(path), path)
    if size is not None:
        _check_size(path, label.shape, size)
    return label


def header_size(path: str) -> tuple[int, int]:
    """Height and width of a picture, upright, from its header; the pixels may still be damaged.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no picture.
    """
    return _look(path, _shown_size)


def check_label_map(path: str, size: tuple[int, int]) -> None:
    """Sees from its header whether a file can be a picture's label map, see `decode_segments`."""
    def check(picture: Image.Image) -> tuple[int, int]:
        _check_pages(picture)
        if picture.mode not in _COLORS:
            _label_spread(picture)
        elif picture.format == "JPEG":
            raise _Refused("is a JPEG file, which changes numbers; save label maps as PNG")
        return _shown_size(picture) if picture.format == "TIFF" else picture.size[::-1]

    _check_size(path, _look(path, check), size)


def check_header(data: bytes, name: str) -> None:
    """Sees from its header whether an encoded picture may be decoded, see `check_shape`.

    Raises:
      ValueError: no picture, or one that may not.
    """
    _decode(data, name, lambda picture: None)


def decode_image(data: bytes, name: str) -> np.ndarray:
    """`read_image` of the content of a file; `name` is for messages."""
    return _decode(data, name, _as_rgb)


def from_pil(picture: Image.Image) -> np.ndarray:
    """What `read_image` makes of a file, of an image of PIL.

    Raises:
      ValueError: with numbers that are no brightness.
    """
    check_shape(*picture.size[::-1], "the picture")
    try:
        return _as_rgb(picture)
    except _Refused as error:
        raise ValueError(f"the picture {error}") from None
    except _UNREADABLE as error:  # of a file that is read only now
        raise ValueError(f"the picture cannot be read ({error})") from None


def decode_label_map(data: bytes, name: str) -> np.ndarray:
    """`read_label_map` of the content of a file; `name` is for messages."""
    return _decode_map(data, name, _as_labels)


def decode_segments(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    """A label map of any form, as int32 [H, W], and whether it is in colour.

    Of grey and of palettes the stored numbers; in colour red + 256 green + 65536 blue. Where all
    three are the same in every pixel, the map is a grey one.

    Raises:
      ValueError: a format that changes numbers, or a transparent one.
    """
    return _decode_map(data, name, _as_segments)


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """The mask [H, W] bool in a picture: where a cut-out is opaque, else what is not 0 or black.

    Raises:
      ValueError: it cannot be read.
    """
    return _decode_map(data, name, _as_mask)


def decode_colors(data: bytes, name: str) -> np.ndarray:
    """A label map that speaks in colours, as int32 [H, W]: red + 256 green + 65536 blue.

    Raises:
      ValueError: no picture in colour, or in a format that changes them.
    """
    return _decode_map(data, name, _as_color_codes)


def decode_shown_colors(data: bytes, name: str) -> np.ndarray:
    """`decode_colors`, where a palette stands for the colours it shows, and grey for itself.

    Raises:
      ValueError: no picture in colour, or in a format that changes them.
    """
    return _decode_map(data, name, lambda picture: _as_color_codes(
        picture.convert("RGB") if picture.mode in ("1", "L", "P") else picture, picture.format))


def upright_rgb(data: bytes, name: str) -> bytes:
    """A picture that any decoder reads as upright RGB: as it is, or encoded anew without loss.

    Raises:
      ValueError: it cannot be decoded.
    """
    def convert(picture: Image.Image) -> bytes:
        picture.load()
        upright = picture.getexif().get(0x0112, 1) == 1
        if picture.format in ("JPEG", "PNG") and picture.mode in ("RGB", "L") and upright and (
                "transparency" not in picture.info):
            return data
        return encode_png(_as_rgb(picture))

    return _decode(data, name, convert)


def turned(array: np.ndarray, data: bytes, name: str = _PICTURE) -> np.ndarray:
    """An array [H, W] over the stored pixels of a picture, turned upright as the picture is.

    Args:
      array: of any type.
      data: the encoded picture, whose EXIF orientation counts.
      name: of the picture, for messages.

    Raises:
      ValueError: no picture.
    """
    orientation = _decode(data, name, lambda picture: picture.getexif().get(0x0112, 1))
    if orientation in (5, 6, 7, 8):
        array = array.T
    # After the transposition of 5 ... 8 these are what is left of each.
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def size_of(data: bytes, name: str = _PICTURE) -> tuple[int, int]:
    """Height and width of an encoded picture as it is stored, from its header.

    Raises:
      ValueError: no picture.
    """
    return _decode(data, name, _stored_size)


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of a [H, W] uint8/uint16 map or a [H, W, 3] uint8 RGB picture."""
    if array.ndim == 3:
        array = array[..., ::-1]
    ok, data = cv2.imencode(".png", array)
    assert ok
    return data.tobytes()


def shown_size(data: bytes, name: str = _PICTURE) -> tuple[int, int]:
    """Height and width of an encoded picture, upright, from its header.

    Raises:
      ValueError: no picture.
    """
    return _decode(data, name, _shown_size)


def _stored_size(picture: Image.Image) -> tuple[int, int]:
    # Of TIFF files Pillow tells the upright size, some versions only once pixels are read.
    height, width = _of_tiff(picture, _HEIGHT), _of_tiff(picture, _WIDTH)
    return (height, width) if height and width else picture.size[::-1]


def _shown_size(picture: Image.Image) -> tuple[int, int]:
    turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return _stored_size(picture)[::-1] if turned else _stored_size(picture)


def _of_tiff(picture: Image.Image, tag: int) -> int | None:
    """A number in the header of a TIFF file, the first of several; None: there is none."""
    values = picture.tag_v2.get(tag) if picture.format == "TIFF" else None
    return values[0] if isinstance(values, tuple) else values


class _Unfit(ValueError):
    """See `check_shape`."""


class _Refused(Exception):
    """Pillow can read the picture, we cannot use it."""


def _check_size(path: str, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    if tuple(found) != tuple(wanted):
        raise ValueError(f"the label map {path} has {found[1]}x{found[0]} pixels, its picture "
                         f"{wanted[1]}x{wanted[0]}; give one of the same size")


def _content(path: str) -> bytes:
    file = storage.path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    return file.read_bytes()


def _look(path: str, convert: typing.Callable[[Image.Image], typing.Any]):
    file = storage.path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    with file.open("rb") as content:
        return _open(content, path, convert)


def _decode(data: bytes, name: str, convert: typing.Callable[[Image.Image], typing.Any]):
    return _open(io.BytesIO(data), name, convert)


def _decode_map(data: bytes, name: str, convert: typing.Callable[[Image.Image], typing.Any]):
    """`_decode` of what is one mask or label map."""
    def convert_one(picture: Image.Image):
        _check_pages(picture)
        return convert(picture)

    return _decode(data, name, convert_one)


def _check_pages(picture: Image.Image) -> None:
    if picture.format == "TIFF" and picture.n_frames > 1:
        # Smaller copies for viewers, and what is transparent, are pages as well.
        pages = 0
        for place in range(picture.n_frames):
            picture.seek(place)
            pages += not (_of_tiff(picture, _KIND) or 0) & 5
        picture.seek(0)
        if pages > 1:
            raise _Refused(f"holds {pages} pages, wanted one mask or label map a file; save each "
                           "page as a file of its own")


def _open(content: typing.BinaryIO, name: str,
          convert: typing.Callable[[Image.Image], typing.Any]):
    if _is_heif(content) and not _reads_heif():
        raise ValueError(f"{name} is a HEIC picture; pip install pillow-heif lets it be read, or "
                         "save it as JPEG")
    try:
        with Image.open(content) as picture:
            check_shape(*picture.size[::-1], name)
            return convert(picture)
    except _Unfit:
        raise
    except _Refused as error:
        raise ValueError(f"{name} {error}") from None
    except _TOO_LARGE as error:
        count = re.search(r"\d+", str(error))[0]  # Pillow says how many
        raise ValueError(f"{name} has {count} pixels, more than the {limit_pixels()} that are "
                         "decoded; if it is meant, give --max_pixels, else make it smaller"
                         ) from None
    except _UNREADABLE as error:
        error = str(error).split(" <_io.")[0]  # Pillow names the buffer
        raise ValueError(f"{name} cannot be read as a picture ({error})") from None


def _is_inverted(picture: Image.Image) -> bool:
    """Whether 0 is white in numbers of 16 bits; of 8 bits and less Pillow sees to it."""
    return picture.mode.startswith("I;16") and _of_tiff(picture, _WHITE) == 0


def _as_rgb(picture: Image.Image) -> np.ndarray:
    # Mode "I" has 32 bits; Pillow also gives it to 16-bit files of some formats.
    may_be_wide = picture.mode == "I" and picture.format in (None, "TIFF") and (
        _of_tiff(picture, _BITS) != 16)
    is_inverted = _is_inverted(picture)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        grey = np.asarray(picture)
        low, high = grey.min(initial=0), grey.max(initial=0)
        # Up to 255 they look like those of 8 bits, and would all be black as those of 16.
        if picture.mode == "F" or low < 0 or high > 65535 or may_be_wide and high < 256:
            raise _Refused(f"has pixels of 32 bits (mode {picture.mode}), wanted a picture of 8 or "
                           "16 bits a channel")
        grey = ((grey.astype(np.int32) + 128) // 257).astype(np.uint8)
        return np.repeat((255 - grey if is_inverted else grey)[..., None], 3, -1)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def _as_labels(picture: Image.Image) -> np.ndarray:
    spread = _label_spread(picture)  # which is not told any more once the pixels are read
    return np.array(picture).astype(np.int32) // spread


def _label_spread(picture: Image.Image) -> int:
    """What Pillow multiplies the numbers of a label map by; its header tells."""
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
    return {"L;2": 85, "L;4": 17}.get(form, 1)


def _as_segments(picture: Image.Image) -> tuple[np.ndarray, bool]:
    if picture.mode not in _COLORS:
        return _as_labels(picture), False
    if picture.mode in ("LA", "RGBA") and np.asarray(picture.getchannel("A")).min() < 255:
        raise _Refused("is transparent in places, so that its numbers could mean two things; save "
                       "label maps without an alpha channel")
    if picture.mode == "LA":
        return np.asarray(picture.getchannel("L")).astype(np.int32), False
    codes = _as_color_codes(picture)
    red = codes & 255
    in_color = bool((codes != red * 65793).any())
    return (codes if in_color else red), in_color


def _as_mask(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:  # a cut-out
            return alpha > 127
    if picture.mode in ("1", "L") or picture.mode.startswith("I"):
        return np.asarray(picture) != (65535 if _is_inverted(picture) else 0)
    shown = np.asarray(picture.convert("RGB")).any(-1)
    if picture.mode == "P" and shown.all() == shown.any():  # a palette that tells nothing apart
        return np.asarray(picture) != 0
    return shown


def _as_color_codes(picture: Image.Image, form: str | None = None) -> np.ndarray:
    form = form or picture.format  # which a converted picture has lost
    if form == "JPEG" or picture.mode not in ("RGB", "RGBA"):
        raise _Refused(f"is a {form} file of mode {picture.mode}, wanted a label map in "
                       "colours (RGB, PNG)")
    red, green, blue = np.moveaxis(np.asarray(picture).astype(np.int32)[..., :3], -1, 0)
    return red + 256 * green + 65536 * blue
