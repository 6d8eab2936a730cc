"""Fonts: Pillow's own for Latin letters, one of the system for names in other scripts."""

import functools
import typing
import unicodedata

from absl import logging
from PIL import ImageFont

# Files that Pillow looks for where systems keep fonts; those for many scripts first.
_OF_SYSTEMS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "SourceHanSans-Regular.ttc",
    "Arial Unicode.ttf", "PingFang.ttc", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "unifont.otf", "DejaVuSans.ttf", "NotoSans-Regular.ttf",
    "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf", "Nirmala.ttf", "segoeui.ttf", "Arial.ttf",
    "LiberationSans-Regular.ttf")
_told: set[str] = set()  # letters that people know to have no font
_NONE = "\U0010ffff"  # no font has a glyph of it, so it shows what stands for missing ones


def font_for(size: int, texts: typing.Iterable[str] = ()) -> ImageFont.FreeTypeFont:
    """The font of a height in pixels that has the letters of all texts, or most of them."""
    letters = "".join(sorted({c for text in texts for c in _plain(text) if not " " <= c <= "~"}))
    name = _name_for(letters) if letters else None
    return _own(size) if name is None else ImageFont.truetype(name, size)


def fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text cut to a width in pixels, in letters that the font has."""
    if isinstance(font.path, str):  # a file of the system
        text = unicodedata.normalize("NFC", text)
    else:
        text = "".join(c if " " <= c <= "~" else "?" for c in _plain(text))
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1].rstrip()
    return text + "..."


@functools.cache
def _own(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """Without accents where ASCII is left, which is what Pillow's own font has."""
    letters = []
    for letter in unicodedata.normalize("NFC", text):
        bare = "".join(c for c in unicodedata.normalize("NFKD", letter)
                       if not unicodedata.combining(c))
        letters.append(bare if bare.isascii() else letter)
    return "".join(letters)


@functools.cache
def _name_for(letters: str) -> str | None:
    """The file of the system's font that has most of some letters; None if none has any."""
    best, left = None, letters
    for name in _OF_SYSTEMS:
        try:
            font = ImageFont.truetype(name, 16)
        except OSError:
            continue
        missing = bytes(font.getmask(_NONE))
        without = "".join(c for c in letters if bytes(font.getmask(c)) == missing)
        if len(without) < len(left):
            best, left = name, without
        if not left:
            break
    if not _told.issuperset(left):
        _told.update(left)
        logging.warning("no font of this system has the letters %s, so drawings show signs in "
                        "their place; install one that covers the world, such as Noto Sans CJK "
                        "(apt install fonts-noto-cjk)", left[:20])
    return best
