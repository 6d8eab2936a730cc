"""Label maps: pictures of numbers, read by one rule in every command.

Every number is a class, or a mask; 0 as well. What means nothing is 255 and 65535, the largest
numbers of 8 and 16 bits, or whatever a user says (`--nothing=0`). In a map that has numbers between
these two 255 is one like the others. Negative numbers, which a .npy file may hold, mean nothing as
well. With an empty list every number is a mask, as in MaskCLIP++'s reference. A map of 0 and 255
alone may be a mask in white; before its masks are named that is said.
"""

import io
import typing
import warnings

import numpy as np

from maskclippp_jax.runtime import storage

NOTHING = (255, 65535)
Nothing = typing.Sequence[int] | int | None  # what a user says
MOST = 4096  # masks of a map
MOST_CLASSES = NOTHING[1]  # of a file of 16 bits: 0 ... 65534


def check_classes(count: int, name: object) -> None:
    """Sees that files of label maps can hold every class of a vocabulary.

    Raises:
      ValueError: there are too many.
    """
    if count > MOST_CLASSES:
        raise ValueError(f"{name} has {count} classes, and files of label maps hold the numbers of "
                         f"{MOST_CLASSES} (16 bits); leave some out")


def checked(labels: np.ndarray, name: object, lowest: int = 0) -> np.ndarray:
    """A map of integers [H, W] as int32.

    Raises:
      ValueError: numbers that cannot be those of classes or masks.
    """
    low, high = (int(f(labels)) for f in (np.min, np.max)) if labels.size else (0, 0)
    if low < lowest or high > 2**31 - 1:
        raise ValueError(f"{name} holds numbers in {low} ... {high}, wanted {lowest} ... "
                         f"{2**31 - 1}")
    return labels.astype(np.int32)


def masks_in(labels: np.ndarray, nothing: Nothing, name: object) -> np.ndarray:
    """The numbers of a map that are masks, ascending.

    Args:
      labels: [H, W] integers.
      nothing: numbers that mean nothing, or one; None: see above.
      name: of the map, for messages.

    Raises:
      ValueError: more numbers than any map of masks has.
    """
    numbers = np.unique(labels)
    if len(numbers) > MOST:
        raise ValueError(f"{name} looks like a photograph: it holds {len(numbers)} different "
                         f"values, wanted a label map with at most {MOST}")
    return numbers[~np.isin(numbers, means_nothing(numbers, nothing))]


def means_nothing(numbers: np.ndarray, nothing: Nothing) -> list[int]:
    """Which of the numbers of a map mean nothing, ascending.

    Raises:
      ValueError: `nothing` holds no numbers.
    """
    if nothing is None:
        ordinary = ((numbers > NOTHING[0]) & (numbers < NOTHING[1])).any()
        nothing = NOTHING[1:] if ordinary else NOTHING
    is_list = np.iterable(nothing) and not isinstance(nothing, str)
    nothing = list(nothing) if is_list else [nothing]
    if not all(isinstance(n, int | np.integer) for n in nothing):
        raise ValueError(f"nothing is {nothing if is_list else nothing[0]!r}, wanted numbers of a "
                         "label map, such as [0]")
    return [n for n in numbers.tolist() if n < 0 or n in nothing] if nothing else []


def may_be_white_mask(numbers: np.ndarray) -> bool:
    """Whether a map with these numbers looks like a mask of black and white."""
    return numbers.tolist() == [0, 255]


def warn_of_white_mask(numbers: np.ndarray, nothing: Nothing, name: object) -> None:
    """Warns of a map with these numbers that looks like a mask of black and white, of which all but
    the mask is named, unless `nothing` says what it is."""
    if nothing is None and may_be_white_mask(numbers):
        warnings.warn(f"{name} holds 0 and 255 alone, and 255 means nothing; if it is one mask in "
                      "white, give --nothing=0 (in Python nothing=0), else --nothing=255",
                      stacklevel=2)


def stored(labels: np.ndarray) -> np.ndarray:
    """A map [H, W] of numbers from 0, -1 = nothing, as uint8 (255 = nothing) or, where it holds
    255 or more, as uint16 (65535 = nothing).

    Raises:
      ValueError: a number that 16 bits do not hold.
    """
    if labels.max(initial=0) >= MOST_CLASSES:
        raise ValueError(f"the label map holds {labels.max()}, wanted at most {MOST_CLASSES - 1}: "
                         "files of label maps have 16 bits")
    dtype = np.uint8 if labels.max(initial=0) < NOTHING[0] else np.uint16
    return np.where(labels < 0, np.iinfo(dtype).max, labels).astype(dtype)


def read_array(path: str) -> np.ndarray:
    """The array of a .npy file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another content.
    """
    content = io.BytesIO(content_of(path))
    try:
        array = np.load(content, allow_pickle=False)
    except Exception as error:  # numpy reads headers with Python's parser: anything may come
        raise ValueError(f"{path} is no array ({error})") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} holds several arrays, wanted a .npy file of one")
    return array


def content_of(path: str) -> bytes:
    file = storage.path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    return file.read_bytes()
