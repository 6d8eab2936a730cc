"""CLIP's byte-pair tokenizer, and those of SigLIP and TIPS.

The package `tokenizers` splits and merges for CLIP, with the merges that CLIP was published with;
`sentencepiece` does the work of the others, with a vocabulary file that the user gives. This is the
only module that knows them.
"""

import functools
import gzip
import html
import itertools
import pathlib
import re
import string
import typing

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from maskclippp_jax.runtime import storage

START, END = 49406, 49407  # CLIP's ids of <start_of_text> and <end_of_text>
SIGLIP_END = 1  # in the vocabularies of SigLIP and SigLIP 2
_TIPS_MARKS = 0, 3  # padding and start in the vocabulary of TIPS
PADDING, UNKNOWN = 0, 1  # of a model that knows a few words only

# From github.com/openai/CLIP (its licence lies beside it), unchanged; sha256
# 924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a.
_MERGES = pathlib.Path(__file__).parents[1] / "assets" / "bpe_simple_vocab_16e6.txt.gz"
_SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}  # these two may be written out

# CLIP's pattern, which ignores case, for text that went through `clean`: there a blank is the only
# white space, and the long s (U+017F) the only other case of a letter below. U+0345 belongs to no
# word: a mark whose capital is a letter, it falls between the classes of the original. A flag
# "(?i)" would not do, Oniguruma, the engine of `tokenizers`, takes that mark for a letter then.
_WORD = (r"<[sſ]tart_of_text>|<end_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}"
         r"|[^ \p{L}\p{N}\x{345}]+")


class Tokenizer:
    def __init__(self, context_length: int = 77, words: typing.Sequence[str] | None = None):
        """Makes the tokenizer.

        Args:
          context_length: tokens of a row, start and end included.
          words: the words a small model knows. Their ids are numbered anew in CLIP's order, so that
            the end token stays the largest; 0 is padding and 1 any other word. None: CLIP's ids.

        Raises:
          FileNotFoundError: the package was installed without CLIP's merges.
        """
        _merges()  # read now, not at the first text
        self.context_length = context_length
        self._new_id = None
        if words is not None:
            known = sorted({i for word in words for i in self._encode(word)} | {START, END})
            self._new_id = {old: new for new, old in enumerate(known, start=2)}

    @property
    def vocab_size(self) -> int:
        return END + 1 if self._new_id is None else len(self._new_id) + 2

    def __call__(self, texts: typing.Sequence[str]) -> np.ndarray:
        """Token ids [n, context_length] int32, padded with 0.

        A text that is too long is cut, and its last id is the end token, as in CLIP.
        """
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts):
            ids = [START, *self._encode(text), END]
            if len(ids) > self.context_length:
                ids = [*ids[:self.context_length - 1], END]
            if self._new_id is not None:
                ids = [self._new_id.get(i, UNKNOWN) for i in ids]
            row[:len(ids)] = ids
        return rows

    def unknown_words(self, texts: typing.Iterable[str]) -> list[str]:
        """Words that a small model never saw (always none with CLIP's whole vocabulary)."""
        if self._new_id is None:
            return []
        words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", clean(text))}
        return sorted(w for w in words if any(i not in self._new_id for i in self._encode(w)))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word, _ in _splitter().pre_tokenize_str(clean(text)):
            if word in _SPECIAL:
                ids.append(_SPECIAL[word])
            else:
                ids.extend(token.id for token in _merges().tokenize(word))
        return ids


def clean(text: str) -> str:
    """Repairs broken Unicode, unescapes HTML twice, collapses white space, lowers the case."""
    if not (text.isascii() and text.isprintable()) or "&" in text:  # else nothing is to be repaired
        import ftfy  # slow to import

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


@functools.cache
def _splitter() -> pre_tokenizers.PreTokenizer:
    """Splits clean text into words, each spelt with one character a byte."""
    words = pre_tokenizers.Split(tokenizers.Regex(_WORD), "removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, as_bytes])


@functools.cache
def _merges() -> models.BPE:
    """Merges the bytes of a word: 256 bytes, the same at the end of a word, then the merges."""
    if not _MERGES.is_file():
        raise FileNotFoundError(f"no {_MERGES}, CLIP's merges, which are a part of this package; "
                                "install it again")
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
                 *range(ord("®"), ord("ÿ") + 1)]  # stand for themselves, and come first
    alphabet = [*map(chr, printable), *map(chr, range(256, 512 - len(printable)))]
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        # The first line is a version; CLIP uses no more of the others than its ids have room for.
        merges = [tuple(line.split()) for line in itertools.islice(file, 1, START - 512 + 1)]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *map("".join, merges)]
    return models.BPE({token: i for i, token in enumerate(tokens)}, merges,
                      end_of_word_suffix="</w>")


class SentencePieceTokenizer:
    """The tokenizer of SigLIP and SigLIP 2, after google-research/big_vision.

    Their vocabularies differ and so do their paddings; both lower the 26 letters of ASCII only, and
    end every text with the token 1.
    """

    def __init__(self, file: str, context_length: int, padding: int):
        """Reads a vocabulary.

        Args:
          file: a sentencepiece model, here or in a bucket; `VOCABULARIES` says where they are.
          context_length: tokens of a row, end included.
          padding: id that fills a row.

        Raises:
          FileNotFoundError: no such file.
          ValueError: no sentencepiece model, or one whose end token is another.
        """
        self._pieces = _load_pieces(file, VOCABULARIES)
        if self._pieces.eos_id() != SIGLIP_END:
            raise ValueError(f"{file} has the end token {self._pieces.eos_id()}, wanted "
                             f"{SIGLIP_END}. {VOCABULARIES}")
        self.context_length, self.padding = context_length, padding

    @property
    def vocab_size(self) -> int:
        return self._pieces.GetPieceSize()

    def __call__(self, texts: typing.Sequence[str]) -> np.ndarray:
        """Token ids [n, context_length] int32; a text that is too long is cut before its end."""
        rows = np.full((len(texts), self.context_length), self.padding, np.int32)
        for row, text in zip(rows, texts):
            ids = self._pieces.EncodeAsIds(lower_ascii(text))[:self.context_length - 1]
            row[:len(ids) + 1] = [*ids, SIGLIP_END]
        return rows

    def unknown_words(self, texts: typing.Iterable[str]) -> list[str]:
        """None: pieces make up every word."""
        del texts
        return []


class TIPSTokenizer:
    """The tokenizer of TIPS: pieces of a text, nothing before or after them; padding is 0.

    Letters of ASCII are lowered, as the authors' does. Each text stands for itself: theirs forgets
    the padding of a whole batch if its longest text is cut.
    """

    def __init__(self, file: str, context_length: int):
        """Reads a vocabulary.

        Args:
          file: a sentencepiece model, here or in a bucket; `TIPS_VOCABULARY` says where it is.
          context_length: tokens of a row.

        Raises:
          FileNotFoundError: no such file.
          ValueError: no sentencepiece model, or that of another family.
        """
        self._pieces = _load_pieces(file, TIPS_VOCABULARY)
        marks = self._pieces.pad_id(), self._pieces.bos_id()
        if marks != _TIPS_MARKS:
            raise ValueError(
                f"{file} has the padding token {marks[0]} and the start token {marks[1]}, wanted "
                f"{_TIPS_MARKS[0]} and {_TIPS_MARKS[1]}: give TIPS's vocabulary. {TIPS_VOCABULARY}")
        self.context_length = context_length

    @property
    def vocab_size(self) -> int:
        return self._pieces.GetPieceSize()

    def __call__(self, texts: typing.Sequence[str]) -> np.ndarray:
        """Token ids [n, context_length] int32; a text that is too long is cut."""
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts):
            ids = self._pieces.EncodeAsIds(lower_ascii(text))[:self.context_length]
            row[:len(ids)] = ids
        return rows

    def unknown_words(self, texts: typing.Iterable[str]) -> list[str]:
        """None: pieces make up every word."""
        del texts
        return []


def _load_pieces(file: str, where: str):
    """A sentencepiece model; see `SentencePieceTokenizer` for what is raised."""
    import sentencepiece  # only these models need it

    local = storage.local_copy(file)
    if not pathlib.Path(local).is_file():
        raise FileNotFoundError(f"no sentencepiece model {file}; give one as "
                                f"config.sentencepiece. {where}")
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.Load(local)
    except RuntimeError:
        raise ValueError(f"{file} is no sentencepiece model. {where}") from None
    return pieces


# Where the files are; they may not be shipped.
VOCABULARIES = (
    "SigLIP has gs://t5-data/vocabs/cc_en.32000/sentencepiece.model (for many languages "
    "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model), SigLIP 2 has "
    "gs://big_vision/gemma_tokenizer.model; the model's repository on the hub holds it as "
    "spiece.model or tokenizer.model")
TIPS_VOCABULARY = ("TIPS has https://storage.googleapis.com/tips_data/v1_0/checkpoints/"
                   "tokenizer.model for all its models")


def lower_ascii(text: str) -> str:
    """Lowers A to Z and leaves all other letters as they are."""
    return text.translate({ord(c): c.lower() for c in string.ascii_uppercase})


def canonicalize(text: str) -> str:
    """Class names and prompts as SigLIP's zero-shot evaluation in big_vision writes them.

    "_" is a blank, punctuation goes, letters are small, white space is single.
    """
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())
