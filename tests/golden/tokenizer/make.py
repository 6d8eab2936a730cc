"""Makes the files of this folder with OpenCLIP's tokenizer; needs what the tests do not.

    pip install regex && pip install --no-deps open_clip_torch==3.3.0
    python tests/golden/tokenizer/make.py

vocabularies.txt: a digest of the ids, the number of templates, and the name of the vocabulary.
hostile.json.gz: strings that are hard to split, repair or merge, and the ids of each, uncut.

Run it under Python 3.11: the strings hold only characters that Unicode 14, which that Python knows,
has assigned (or says it never will), so no later version of a library sees other letters in them.
"""

import gzip
import hashlib
import importlib.util
import json
import pathlib
import random
import sys
import types
import unicodedata

import numpy as np

from maskclippp_jax import vocabulary

HERE = pathlib.Path(__file__).parent
NUM_STRINGS = 2000
START, END = 49406, 49407

assert unicodedata.unidata_version == "14.0.0", "run this under Python 3.11"


def main():
    reference = open_clip_tokenizer().SimpleTokenizer()
    lines = [f"{digest(reference, name, templates)} {len(templates)} {name}\n"
             for name in vocabulary.shipped_names()
             for templates in (vocabulary.TEMPLATES_1, vocabulary.TEMPLATES_14,
                               vocabulary.TEMPLATES_80)]
    (HERE / "vocabularies.txt").write_text("".join(lines))

    texts = hostile_strings()
    ids = [[START, *reference.encode(text), END] for text in texts]
    content = json.dumps({"texts": texts, "ids": ids}, separators=(",", ":"))
    (HERE / "hostile.json.gz").write_bytes(gzip.compress(content.encode("ascii"), 9, mtime=0))


def open_clip_tokenizer():
    """OpenCLIP's module without the rest of the package, so that it runs without torch."""
    sys.modules.setdefault("torch", types.SimpleNamespace(Tensor=object, LongTensor=object))
    package = pathlib.Path(importlib.util.find_spec("open_clip").origin).parent
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", package / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(reference, name, templates):
    """sha256 of [S * T, 77] little-endian int32."""
    sha = hashlib.sha256()
    for prompt in vocabulary.Vocabulary.shipped(name).prompts(templates):
        ids = [START, *reference.encode(prompt), END]
        if len(ids) > 77:
            ids = [*ids[:76], END]
        sha.update(np.array(ids + [0] * (77 - len(ids)), "<i4").tobytes())
    return sha.hexdigest()


FIXED = (
    "", " ", "\t\n\r\x0b\x0c", "\x00", "\ud800", "a\udfffb", "\ud83d\ude00", "\ufeff", "\u200b",
    "\u180e", "a\u180eb", "a\x1cb\x1db\x1ec\x1fd", "a\x85b", "a\xa0b", "a\u2028b\u2029c",
    "a\u3000b", "<start_of_text>", "<end_of_text>", "<start_of_text><end_of_text>",
    "<START_OF_TEXT>a<End_Of_Text>", "!<start_of_text>", "<start_of_text>!", "<<start_of_text>>",
    "a<end_of_text>b", "'s<end_of_text>", "<\u017ftart_of_text>", "!<\u017ftart_of_text>",
    "<\ufb06art_of_text>", "&lt;end_of_text&gt;", "&amp;lt;end_of_text&amp;gt;",
    "<end_of_text", "end_of_text>", "< end_of_text >", "<|endoftext|>", "<|startoftext|>", "</w>",
    "a</w>", "it\u2019s", "it\u2019S", "it'\u017f", "IT'\u017fx", "'s't're've'm'll'd",
    "'S'T'RE'VE'M'LL'D", "''s", "!'s", "1's", "\u0345's", "a\u0345b", "\u0345", "'\u0345",
    "\u0130stanbul", "I\u0307", "\u0131", "\u03a3\u03a3 \u1f88\u03a3.", "STRASSE stra\u1e9ee",
    "\u212a\u212b\u2126", "\u01c5\u01c8\u01cb", "&nbsp;a&nbsp;", "&#0;", "&#x80;", "&#xD800;",
    "&#x110000;", "&#13;&#10;", "&notit;", "&amp;amp;amp;", "&lt;b&gt;", "<b>&amp;</b>", "&fjlig;",
    "&#x17F;", "&#x200b;", "&", "&;", "&#;", "&#x;", "_", "__init__", "a_b", "_1_", "3.14e-10",
    "\u00bd\u00b2\u2167\u3007", "\u4e00\u4e8c\u4e09", "\u0e01\u0e33", "e\u0301\u0301", "\u0301a",
    "a\u200db", "1\ufe0f\u20e3", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\ufffe\uffff",
    "\U0010ffff", "\U000e0001\U000e0041", "\x1b[31mred\x1b[0m", "\u00e2\u0080\u0099",
    "schÃ¶n", "l’humanitÃ©", "â€œquotedâ€\x9d", "ÃƒÂ¼", "ï»¿bom", "\ufb01\ufb03\ufb05",
    "ＦＵＬＬ　ＷＩＤＴＨ　１２３＇ｓ", "\uac00\u1100\u1161\u11a8", "z" * 3000, "ab" * 500,
    "!" * 1000, "7" * 300, "\U0001f600" * 200, "pneumonoultramicroscopicsilicovolcanoconiosis" * 8,
    "'s" * 300, "word " * 200, "\u0e01" * 400, "a\u0301" * 300,
)

WORDS = ("a photo of the", "cat", "traffic light", "CAT", "Zebra-crossing", "naïve", "Škoda",
         "straße", "ÅNGSTRÖM", "ΟΔΥΣΣΕΥΣ", "ЁЖИК", "ﬁsh", "ﬅone", "ſtone", "Iıİi", "e-mail@x.org",
         "don", "we", "o", "rock", "l", "ſ", "S", "D", "LL", "x1", "1990s", "C++", "$5.00", "...")
CONTRACTIONS = tuple(q + c for q in ("'", "’", "‘", "ʼ", "＇", "`", "´", "&#39;", "&rsquo;")
                     for c in ("s", "S", "ſ", "t", "T", "re", "RE", "rE", "ve", "m", "ll", "lL",
                               "d", "D", "z", "", "sd", "tll"))
SPACES = ("", "", " ", "  ", "\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f",
          "\x85", "\xa0", "\u1680", "\u180e", "\u2000", "\u2009", "\u200a", "\u200b", "\u2028",
          "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "&nbsp;", "&#32;", "_")
ENTITIES = ("&amp;", "&lt;", "&gt;", "&quot;", "&apos;", "&nbsp;", "&eacute;", "&Eacute;",
            "&szlig;", "&amp;amp;", "&amp;lt;", "&amp;amp;lt;", "&#65;", "&#x41;", "&#X1F600;",
            "&#128;", "&#0;", "&#1;", "&#x1c;", "&#xFFFE;", "&#55357;", "&#9999999999;", "&amp",
            "&notin", "&bogus;", "&NotEqualTilde;", "&acE;", "&zwj;", "&zwnj;", "&shy;",
            "&ZeroWidthSpace;", "&Kopf;", "&ffllig;", "&hellip;", "&half;", "&Sigma;", "&#x130;",
            "&#x345;", "&#x2028;")
SPECIAL = ("<start_of_text>", "<end_of_text>", "<START_OF_TEXT>", "<End_of_Text>",
           "<ſtart_of_text>", "<start_of_text", "end_of_text>", "<end of text>", "<end__of_text>",
           "&lt;start_of_text&gt;", "＜end_of_text＞", "<|endoftext|>", "</w>", "<e", "nd_of_text>")
CONTROLS = tuple(map(chr, (*range(9), *range(14, 32), *range(127, 160)))) + (
    "\x1b[0m", "\x1b[1;31m", "\u00ad", "\u061c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066",
    "\u2069", "\u206a", "\u206f", "\ufff9", "\ufffb", "\ufffc", "\ufffd", "\ufffe", "\uffff",
    "\ud800", "\udbff", "\udc00", "\udfff", "\ud83d\ude00", "\U0001fffe", "\U000e0020",
    "\U000e007f", "\U000f0000", "\U0010fffd", "\ue000")
EMOJI = ("\U0001f600", "\u2764\ufe0f", "\u263a", "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7",
         "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\u200d",
         "\U0001f468\u200d\U0001f4bb", "\U0001f3f3\ufe0f\u200d\U0001f308", "7\ufe0f\u20e3",
         "\ufe0e", "\ufe0f", "\U0001f9d1\U0001f3fb\u200d\u2764\ufe0f\u200d\U0001f9d1")
DIGITS = tuple("0123456789٠٣٩۴߇३৪௫๓༣၅១᠓᥍᭒꘥０９²₃½⅓①⒈⓪❶〡〇一二十百Ⅳⅷↂ㊿㍘㋀") + (
    "\u0bf0", "\U0001d7d8", "\U0001d7ff", "\U00010107", "\U0001f100", "\U00012400", "\U0001e950")
MIXED_SCRIPTS = tuple("漢字仮名カタカナひらがなｶﾅ한국어ᄒ丏㐀豈") + (
    "\U00020000", "\u1112\u1161\u11ab", "שלום", "שָׁלוֹם", "مرحبا", "ﷺ", "ﻻ",
    "\u0915\u094d\u0937\u093f", "ไทย", "ພາສາ", "བོད", "ქართული", "ᲥᲐᲠᲗ", "Ꭰꭰ", "ՀԱՅ և",
    "ℌ𝔬𝓁𝓁𝕠", "ᵃᵇ", "Ǆǅǆ", "ŉ", "ǰ", "ẖ")
MARKS = tuple(map(chr, (*range(0x300, 0x370), *range(0x483, 0x48A), *range(0x591, 0x5BE),
                        *range(0x64B, 0x660), 0x903, 0x94D, 0xE31, 0xE47, 0x20D0, 0x20E3, 0x3099,
                        0x1D165, 0xFE20)))
POOLS = (WORDS, CONTRACTIONS, SPACES, ENTITIES, SPECIAL, CONTROLS, EMOJI, DIGITS, MIXED_SCRIPTS,
         MARKS, tuple("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¿¡«»“”‘’‚„…–—·•§¶†№™"))


def hostile_strings():
    """[2000] texts, the same on every run."""
    rng = random.Random(20240817)
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    beyond_latin = [c for c in assigned if unicodedata.name(c, "").split()[:2] not in (
        ["CJK", "UNIFIED"], ["HANGUL", "SYLLABLE"]) and unicodedata.category(c) != "Co"]
    texts = list(FIXED)
    while len(texts) < NUM_STRINGS:
        kind = len(texts) % 5
        if kind == 0:  # any characters, most of them not of the large blocks
            source = assigned if rng.random() < 0.25 else beyond_latin
            text = "".join(rng.choice(source) + rng.choice(("", "", " ", "a"))
                           for _ in range(rng.randint(1, 30)))
        elif kind == 1:  # one kind of difficulty among words
            pool = rng.choice(POOLS)
            text = "".join(rng.choice(rng.choice((pool, WORDS, SPACES)))
                           for _ in range(rng.randint(1, 16)))
        elif kind == 2:  # all of them
            text = "".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randint(1, 24)))
        elif kind == 3:  # words in a wrong encoding, once or twice
            text = " ".join(rng.choice(rng.choice((WORDS, EMOJI, MIXED_SCRIPTS, CONTRACTIONS)))
                            for _ in range(rng.randint(1, 8)))
            for _ in range(rng.randint(1, 2)):
                wrong = rng.choice(("latin-1", "cp1252", "cp1251", "cp437", "macroman"))
                text = text.encode("utf-8", "replace").decode(wrong, "replace")
        else:  # letters of a few scripts run together, with marks
            letters = [rng.choice(beyond_latin) for _ in range(rng.randint(1, 4))]
            text = "".join(rng.choice((*letters, rng.choice("abcdeſKİ"), rng.choice(MARKS)))
                           for _ in range(rng.randint(1, 60)))
        texts.append(text)
    return texts


if __name__ == "__main__":
    main()
