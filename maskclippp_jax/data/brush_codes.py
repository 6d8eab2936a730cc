"""Masks as Label Studio's brush keeps them: a picture of four channels, packed bit by bit.

The form is that of thi.ng's rle-pack: 32 bits with the count of values, 5 with the size of a value,
four times 4 with sizes of counts (all sizes less one); then pieces, each with a bit that says
whether one value is repeated, 2 bits that choose the size of the count, the count less one, and
that value, or so many different ones. The mask is in the fourth channel (opacity), row by row.
"""

import typing

import numpy as np

_VALUE, _SIZES = 8, (3, 4, 8, 16)
_LONGEST = 1 << _SIZES[-1]
_CHANNELS = 4


def encode(mask: np.ndarray) -> list[int]:
    """A mask [H, W] bool as bytes."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=len(flat)) * _CHANNELS
    pieces = [(value, min(_LONGEST, length - done))
              for value, length in zip(flat[starts], lengths.tolist())
              for done in range(0, length, _LONGEST)]
    codes = np.array([(1 << 26) + (3 << 24) + ((length - 1) << 8) + 255 * bool(value)
                      for value, length in pieces], np.int64)
    head = [_bits(np.array([number]), size).ravel() for number, size in (
        (flat.size * _CHANNELS, 32), (_VALUE - 1, 5), *((size - 1, 4) for size in _SIZES))]
    return np.packbits(np.concatenate([*head, _bits(codes, 27).ravel()])).tolist()


def decode(code: typing.Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Bytes as a mask [H, W] bool.

    Raises:
      ValueError: they are damaged, or of another size. The text starts in the middle of a sentence
        ("is for ...") that the caller begins with the mask's name.
    """
    try:
        stream = _Stream(np.unpackbits(np.array(code, np.uint8)))
    except (OverflowError, ValueError, TypeError):
        raise ValueError("holds numbers that are no bytes") from None
    wanted = size[0] * size[1] * _CHANNELS
    count, value_bits = stream.number(32), stream.number(5) + 1
    if count != wanted:
        raise ValueError(f"is for {count // _CHANNELS} pixels, the picture has {size[1]}x{size[0]}")
    sizes = [stream.number(4) + 1 for _ in range(4)]
    inside = np.zeros(count, bool)
    place = 0
    while place < count:
        repeated = stream.number(1)
        length = stream.number(sizes[stream.number(2)]) + 1
        if place + length > count:
            raise ValueError("has runs that are longer than the picture; is it damaged?")
        inside[place:place + length] = stream.numbers(1 if repeated else length, value_bits) > 0
        place += length
    return inside[_CHANNELS - 1::_CHANNELS].reshape(size)


class _Stream:
    """Bits that are read from their start."""

    def __init__(self, bits: np.ndarray):
        self._bits, self._place = bits, 0

    def number(self, size: int) -> int:
        return int(self.numbers(1, size)[0])

    def numbers(self, count: int, size: int) -> np.ndarray:
        """[count] int64, each of so many bits."""
        bits = self._bits[self._place:self._place + count * size]
        if len(bits) < count * size:
            raise ValueError("is cut short")
        self._place += count * size
        return bits.reshape(count, size).astype(np.int64) @ (1 << np.arange(size)[::-1])


def _bits(numbers: np.ndarray, size: int) -> np.ndarray:
    """[n] integers as bits [n, size], the highest first."""
    return (numbers[:, None] >> np.arange(size)[::-1] & 1).astype(np.uint8)
