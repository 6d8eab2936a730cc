"""What people send to the page, read within limits; what cannot be used ends in a sentence.

Nothing of it is ever run, and no message holds a path of the server.
"""

import pathlib
import typing

import cv2
import numpy as np

from maskclippp_jax.data import images, label_maps, mask_files, transforms
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.vocabulary import Vocabulary

# Colours of the brush; what is drawn in one of them is a mask (Okabe and Ito 2008, told apart by
# people who see fewer colours).
BRUSH = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")
_FORMATS = ((b"%PDF", "a PDF document; save the page as PNG or JPEG"),
            (b"PK\x03\x04", "an archive; take the picture out of it"))


class Limits(typing.NamedTuple):
    """Of one request, and of those that wait."""

    num_bytes: int = 32 * 2**20      # of a file
    pixels: int = 50_000_000         # of a picture
    side: int = 1280                 # pixels of the longer side that is worked on
    characters: int = 20_000         # of words
    names: int = 2_500               # of a vocabulary with its synonyms
    masks: int = 300
    mask_pixels: int = 2**28         # of all masks of a picture together
    waiting: int = 16                # requests
    sessions: int = 32               # whose pictures stay encoded


class Upload(typing.NamedTuple):
    """A file as the server keeps it, and as its owner calls it."""

    path: str
    name: str

    def content(self, limits: Limits) -> bytes:
        """Raises ValueError if it is too large or empty, or was kept too long ago."""
        if not pathlib.Path(self.path).is_file():
            raise ValueError(f"{self.name} is no longer here; give it again")
        size = pathlib.Path(self.path).stat().st_size
        if size > limits.num_bytes:
            raise ValueError(f"{self.name} has {size / 2**20:.0f} MB, more than the "
                             f"{limits.num_bytes >> 20} MB that this page takes; make it smaller")
        if not size:
            raise ValueError(f"{self.name} is empty")
        return pathlib.Path(self.path).read_bytes()


def read_picture(upload: Upload, limits: Limits) -> np.ndarray:
    """A picture as uint8 [H, W, 3], at its own size.

    Raises:
      ValueError: no picture, or too large.
    """
    data = upload.content(limits)
    if b"<svg" in data[:2000].lower():
        raise ValueError(f"{upload.name} is a drawing (SVG), wanted a photograph; save it as PNG")
    for start, what in _FORMATS:
        if data.startswith(start):
            raise ValueError(f"{upload.name} is {what}")
    height, width = images.shown_size(data, upload.name)
    if height * width > limits.pixels:
        raise ValueError(f"{upload.name} has {width}x{height} pixels, more than the "
                         f"{limits.pixels / 1e6:.0f} million that this page takes; make it smaller")
    return images.decode_image(data, upload.name)


def working_size(size: tuple[int, int], limits: Limits) -> tuple[int, int]:
    """The size (height, width) at which a picture is worked on."""
    factor = min(1.0, limits.side / max(size))
    return tuple(max(1, round(n * factor)) for n in size)


def scaled(pixels: np.ndarray, limits: Limits) -> np.ndarray:
    """A picture at its `working_size`."""
    return transforms.resize_image(pixels, working_size(pixels.shape[:2], limits))


def read_masks(upload: Upload, size: tuple[int, int], limits: Limits, picture: str) -> np.ndarray:
    """What a file of masks holds, see `data.mask_files`: [H, W] int32 or [N, H, W].

    `picture` is what its owner calls the picture, for a JSON of several.

    Raises:
      ValueError: it cannot be used, or is for a picture of another size (height, width).
    """
    upload.content(limits)
    try:
        found = mask_files.read(upload.path, size, picture)
        count = len(found) if found.ndim == 3 else len(
            label_maps.masks_in(found, None, upload.name))
    except ValueError as error:
        raise ValueError(str(error).replace(upload.path, upload.name)) from None
    if found.shape[-2:] != size:
        raise ValueError(f"{upload.name} has {found.shape[-1]}x{found.shape[-2]} pixels, the "
                         f"picture {size[1]}x{size[0]}; give masks of the picture's size")
    if count > limits.masks or count * size[0] * size[1] > limits.mask_pixels:
        most = min(limits.masks, limits.mask_pixels // (size[0] * size[1]))
        raise ValueError(f"{upload.name} holds {count} masks, more than the {most} that this page "
                         "takes of a picture of this size; use `maskclippp predict`")
    return found


def drawn_masks(layers: typing.Sequence[np.ndarray | None], size: tuple[int, int]) -> list[dict]:
    """Run lengths of what was drawn, one mask for each colour of `BRUSH`.

    Args:
      layers: of the editor, [h, w, 4] uint8.
      size: (height, width) of the masks.

    Raises:
      ValueError: nothing was drawn.
    """
    palette = np.array([list(bytes.fromhex(color[1:])) for color in BRUSH], np.int32)
    masks = np.zeros((len(BRUSH), *size), bool)
    for layer in layers:
        if layer is None:
            continue
        layer = cv2.resize(layer, size[::-1], interpolation=cv2.INTER_NEAREST)
        y, x = np.nonzero(layer[..., 3] > 127)
        apart = layer[y, x, None, :3].astype(np.int32) - palette[None]  # [n, colours, 3]
        color = (apart ** 2).sum(-1).argmin(-1)
        masks[:, y, x] = False  # a layer covers those below it
        masks[color, y, x] = True
    found = [run_lengths.encode(mask) for mask in masks if mask.any()]
    if not found:
        raise ValueError("nothing is drawn yet; paint over something with the brush, each mask in "
                         "a colour of its own")
    return found


def read_words(text: str, shipped: str, file: Upload | None, limits: Limits) -> Vocabulary:
    """The vocabulary that people mean: that of a file, else a shipped one, else what they typed.

    Args:
      text: "cat; dog, puppy; grass"; lines are classes as well.
      shipped: the name of a shipped vocabulary, or "".
      file: a names file.
      limits: see there.

    Raises:
      ValueError: no words, too many, or a file that holds none.
    """
    if file is not None:
        file.content(limits)
        try:
            vocabulary = Vocabulary.from_file(file.path)
        except (ValueError, FileNotFoundError) as error:
            message = str(error).replace(file.path, file.name)
            raise ValueError(message.replace(pathlib.Path(file.path).name, file.name)) from None
    elif shipped:
        vocabulary = Vocabulary.shipped(shipped)
    else:
        vocabulary = Vocabulary.from_string(classes_of(text, limits))
    if vocabulary.num_synonyms > limits.names:
        raise ValueError(f"there are {vocabulary.num_synonyms} names, more than the {limits.names} "
                         "that this page takes; leave some out")
    return vocabulary


def classes_of(text: str, limits: Limits) -> str:
    """Words as a command line has them; raises ValueError if there are none or too many."""
    if len(text) > limits.characters:
        raise ValueError(f"the words have {len(text)} characters, more than the "
                         f"{limits.characters} that this page takes; leave some out")
    classes = [c.strip() for c in text.replace("\n", ";").split(";") if c.strip()]
    if not classes:
        raise ValueError("there are no words; type some, such as cat; dog, puppy; grass, or "
                         "choose a vocabulary")
    return "; ".join(classes)
