"""From the numbers and colours that label files store to class ids; pictures with their labels."""

import functools
import typing

import numpy as np

from maskclippp_jax.data import images, records
from maskclippp_jax.data.prepare.raw import File
from maskclippp_jax.vocabulary import Vocabulary

VOID = 255       # class ids of pixels that belong to no class
VOID_16 = 65535  # the same where class ids need 16 bits

shipped = functools.cache(Vocabulary.shipped)  # for readers that ask with every picture


def rank_of(values: typing.Iterable[int], void: typing.Iterable[int] = (),
            void_id: int = VOID) -> dict[int, int]:
    """Stored value -> class id: its position among `values`; `void` -> `void_id`."""
    return {v: i for i, v in enumerate(values)} | {v: void_id for v in void}


def map_values(stored: np.ndarray, class_of: typing.Mapping[int, int], name: object,
               hint: str = "which the data set does not know; is it of another release?"
               ) -> np.ndarray:
    """Class ids of a label map.

    Args:
      stored: [H, W] integers.
      class_of: class id of every value that may occur, 0 ... 65535.
      name: of the file, for messages.
      hint: what a message says about another value.

    Returns:
      [H, W] int32.

    Raises:
      ValueError: another value.
    """
    table = np.full(65537, -1, np.int32)  # the last place stands for all that 16 bits cannot say
    table[list(class_of)] = list(class_of.values())
    result = table[np.clip(stored, -1, 65536)]
    if result.min(initial=0) < 0:
        wrong = np.unique(stored[result < 0])
        raise ValueError(f"{name} holds {', '.join(map(str, wrong[:5]))}"
                         f"{', ...' if len(wrong) > 5 else ''}, {hint}")
    return result


def map_colors(codes: np.ndarray, table: typing.Sequence[tuple[int, int, int]],
               name: object) -> np.ndarray:
    """Class ids of a label map in colours: the position of each in a table of (red, green, blue).

    Args:
      codes: [H, W] as `read_colors` gives them.
      table: the colours of the classes.
      name: of the file, for messages.

    Returns:
      [H, W] int32.

    Raises:
      ValueError: another colour.
    """
    classes = records.positions(codes, np.array([r + 256 * g + 65536 * b for r, g, b in table]))
    if classes.min(initial=0) < 0:
        code = int(codes[classes < 0][0])
        raise ValueError(f"{name} holds the colour {(code & 255, code >> 8 & 255, code >> 16)}, "
                         "which the data set does not know; is it of another release?")
    return classes.astype(np.int32)


def read_picture(file: File) -> bytes:
    """The encoded picture, upright RGB for any decoder."""
    return images.upright_rgb(file.read(), str(file))


def upright(label: np.ndarray, picture: File) -> np.ndarray:
    """A label [H, W] as its picture is shown.

    One that was drawn on the stored pixels of a photograph with an EXIF orientation is turned with
    it, if it fits in no other way.
    """
    data, name = picture.read(), str(picture)
    if label.shape == images.shown_size(data, name) or label.shape != images.size_of(data, name):
        return label
    return images.turned(label, data, name)


def read_label(file: File) -> np.ndarray:
    """[H, W] int32, the stored numbers (indices of a palette, not its colours)."""
    return images.decode_label_map(file.read(), str(file))


def read_colors(file: File) -> np.ndarray:
    """[H, W] int32, red + 256 green + 65536 blue."""
    return images.decode_colors(file.read(), str(file))


def semantic(file: File, image_id: str, label: np.ndarray, vocabulary: Vocabulary,
             void: int = VOID) -> list[dict]:
    """The one record of a picture and its class ids."""
    return [records.semantic_record(read_picture(file), image_id, label, vocabulary.is_thing, void)]


def pair(pictures: dict[str, File], *labels: dict[str, File],
         what: str = "") -> tuple[list[tuple], list[str]]:
    """Puts pictures and their label files together by key.

    Args:
      pictures: by key.
      *labels: by key.
      what: the split, for messages.

    Returns:
      A (key, picture, label, ...) for every key that all have, and sentences about the others.
    """
    every = [pictures, *labels]
    common = set(pictures).intersection(*labels)
    items = [(key, *(files[key] for files in every)) for key in sorted(common)]
    missing = []
    for files in every:
        alone = sorted(set(files) - common)
        if alone:
            missing.append(f"{len(alone)} of {len(files)} {what} files have no partner, e.g. "
                           f"{files[alone[0]]}")
    return items, missing
