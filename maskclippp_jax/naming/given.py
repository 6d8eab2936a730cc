"""Pictures and masks as people give them, brought into one form."""

import numbers
import os
import pathlib
import typing

import numpy as np
from PIL import Image

from maskclippp_jax.data import images, label_maps, mask_files
from maskclippp_jax.data.bundles import Bundle, Entry, PictureMasks

ImageLike = str | os.PathLike | Image.Image | np.ndarray
# A function gets the picture, [H, W, 3] uint8, and returns any of the others.
MasksLike = (str | os.PathLike | np.ndarray | Entry | typing.Sequence[typing.Mapping]
             | typing.Callable[[np.ndarray], typing.Any])


class Given(typing.NamedTuple):
    """A picture with its masks: segments of a label map, or masks that may be soft and overlap."""

    image: np.ndarray             # [H, W, 3] uint8
    ids: np.ndarray               # [N] what the masks are called: their numbers, else 1 ... N
    segments: np.ndarray | None   # [H, W] int32: 0 = nothing, n = mask n - 1; None: see `masks`
    masks: PictureMasks | None
    # Whose classes count as well; or a `generator.Generator`, which has the same to say of them.
    bundle: Bundle | typing.Callable | None = None
    path: str | None = None       # of the picture
    nothing: tuple[int, ...] = ()  # numbers of a label map that meant nothing
    large: typing.Any = None  # `tiled.LargeMasks` in place of `masks`, of a picture in tiles

    @property
    def name(self) -> str:
        """What its results are called."""
        return pathlib.Path(self.path).stem if self.path else "picture"


def read(image: ImageLike, masks: MasksLike, nothing: label_maps.Nothing = None, *,
         in_tiles: bool = False) -> Given:
    """A picture and its masks; `api.Model.name` tells what they may be.

    `nothing` are the numbers that mean nothing in a label map; None: see `label_maps`. `in_tiles`:
    the picture will not be worked on as a whole.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no picture, no masks, or both do not fit.
    """
    pixels, path = read_image(image), path_of(image)
    if not in_tiles:
        images.check_whole(pixels.shape[:2], path or "the picture")
    return _read_masks(masks, pixels, nothing, path)._replace(path=path)


def check_whole(name: str, value: typing.Any, least: int, most: int | None = None) -> None:
    """Raises ValueError if what people give for an argument is no whole number in this range."""
    if (isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least
            or most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"in {least} ... {most}"
        raise ValueError(f"got {name}={value!r}, wanted a whole number {wanted}")


def path_of(image: ImageLike) -> str | None:
    """Of a picture that is given by it."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def read_image(image: ImageLike) -> np.ndarray:
    """A picture as uint8 [H, W, 3] RGB."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if os.path.isdir(path):
            raise ValueError(f"{path} is a folder, wanted a picture; name its files one by one")
        return images.read_image(path)
    if isinstance(image, Image.Image):
        return images.from_pil(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"the picture is of type {type(image).__name__}, wanted a path, an image "
                         "of PIL, or an array [H, W, 3] of uint8")
    if image.dtype != np.uint8:
        hint = "; multiply by 255, round, and convert it" if image.dtype.kind == "f" else ""
        raise ValueError(f"the picture is an array of {image.dtype}, wanted uint8 in 0 ... 255"
                         f"{hint}")
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, -1)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        hint = "; drop the fourth channel" if image.ndim == 3 and image.shape[2] == 4 else ""
        raise ValueError(f"the picture is an array of shape {image.shape}, wanted [H, W, 3] in the "
                         f"order red, green, blue, or [H, W] of grey{hint}")
    images.check_shape(*image.shape[:2], "the picture")
    return image


def _read_masks(masks: MasksLike, image: np.ndarray, nothing: label_maps.Nothing,
                picture: str | None) -> Given:
    size = image.shape[:2]
    if callable(masks):
        masks = masks(image)
    if isinstance(masks, Given):  # of a generator
        return masks
    what = "the masks"
    if isinstance(masks, str | os.PathLike):
        path = os.fspath(masks)
        what = f"the masks of {path}"
        masks = mask_files.read(path, size, picture and os.path.abspath(picture))
    if isinstance(masks, Entry):
        found, wanted = masks.read(), masks.size
        if tuple(wanted) != size:
            raise ValueError(f"the masks of {masks.image_id} in {masks.bundle.folder} are of a "
                             f"picture of {wanted[1]}x{wanted[0]} pixels, this one has "
                             f"{size[1]}x{size[0]}")
        return Given(image, np.arange(1, len(found.masks) + 1), None, found, masks.bundle)
    if isinstance(masks, list | tuple) and all(isinstance(m, typing.Mapping) for m in masks):
        segmentations = [m.get("segmentation", m) for m in masks]
        if not any(_is_mask(s, size) for s in segmentations):
            return _of_stack(mask_files.decode_all(segmentations, size, "mask"), image, what)
        masks = segmentations
    if masks is None:
        raise ValueError("got no masks; give a label map, an array [N, H, W], run lengths, or a "
                         "function that makes them, such as maskclippp_jax.superpixels")
    try:
        masks = np.asarray(masks)
    except ValueError:  # they are no array
        raise ValueError("the masks are arrays of several shapes, or not all arrays; give all as "
                         f"arrays [H, W] of the picture's size, {size[1]}x{size[0]} pixels"
                         ) from None
    masks = mask_files.of_array(masks, what)
    if masks.ndim == 2:
        return _of_map(masks, image, nothing, what.replace("masks", "label map"))
    return _of_stack(masks, image, what)


def _is_mask(segmentation: typing.Any, size: tuple[int, int]) -> bool:
    """Whether it is an array of pixels, as of SAM in memory, and not of corners of polygons."""
    return isinstance(segmentation, np.ndarray) and segmentation.ndim == 2 and (
        segmentation.dtype == bool or segmentation.shape == size)


def _of_map(labels: np.ndarray, image: np.ndarray, nothing: label_maps.Nothing, what: str
            ) -> Given:
    _check_size(labels.shape, image.shape[:2], f"{what} has")
    ids = label_maps.masks_in(labels, nothing, what)
    numbers = np.unique(labels)
    label_maps.warn_of_white_mask(numbers, nothing, what)
    table = np.append(ids, -1)  # what no mask has comes last
    place = np.searchsorted(ids, labels)
    segments = np.where(table[place] == labels, place + 1, 0)
    left = tuple(label_maps.means_nothing(numbers, nothing))
    return Given(image, ids, segments.astype(np.int32), None, nothing=left)


def _of_stack(masks: np.ndarray, image: np.ndarray, what: str) -> Given:
    """Of masks [N, H, W], bool or shares in 0 ... 1."""
    _check_size(masks.shape[1:], image.shape[:2], f"{what} have")
    if masks.dtype != bool:
        with np.errstate(divide="ignore"):  # the certain ones become infinite, as they should
            shares = masks.astype(np.float32)
            masks = np.log(shares) - np.log1p(-shares)
    ids = np.arange(1, len(masks) + 1)
    return Given(image, ids, None, PictureMasks(masks, None, None, None))


def _check_size(found: tuple[int, ...], size: tuple[int, int], what: str) -> None:
    if tuple(found) != tuple(size):
        raise ValueError(f"{what} {found[1]}x{found[0]} pixels, the picture {size[1]}x{size[0]}; "
                         "give masks of the picture's size")
