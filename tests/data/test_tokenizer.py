"""CLIP's tokenizer against OpenCLIP's; golden/tokenizer/make.py made the files."""

import dataclasses
import gzip
import hashlib
import html
import json
import pathlib

import ftfy
import numpy as np
import pytest

from maskclippp_jax import vocabulary
from maskclippp_jax.data import tokenizer
from maskclippp_jax.models import maskclippp, tips as tips_model
from maskclippp_jax.naming import loading
from tests import pieces

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenizer"
DIGESTS = {(name, int(num_templates)): digest for digest, num_templates, name in map(
    str.split, (GOLDEN / "vocabularies.txt").read_text().splitlines())}
TEMPLATES = (vocabulary.TEMPLATES_1, vocabulary.TEMPLATES_14, vocabulary.TEMPLATES_80)
START, END = 49406, 49407


def ids_of(text):
    return tokenizer.Tokenizer(context_length=1024)([text])[0].tolist()


def padded(*ids):
    return [*ids, *[0] * (1024 - len(ids))]


def test_every_shipped_vocabulary_has_golden_ids_with_all_templates():
    assert sorted(DIGESTS) == [(n, len(t)) for n in vocabulary.shipped_names() for t in TEMPLATES]


@pytest.mark.parametrize("templates", [
    *TEMPLATES[:2], pytest.param(TEMPLATES[2], marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("name", sorted({name for name, _ in DIGESTS}))
def test_prompts_of_shipped_vocabularies_have_the_ids_of_open_clip(name, templates):
    prompts = vocabulary.Vocabulary.shipped(name).prompts(templates)
    ids = tokenizer.Tokenizer()(prompts).astype("<i4")  # [S * T, 77]
    assert hashlib.sha256(ids.tobytes()).hexdigest() == DIGESTS[name, len(templates)]


def test_hostile_strings_have_the_ids_of_open_clip():
    golden = json.loads(gzip.decompress((GOLDEN / "hostile.json.gz").read_bytes()))
    texts, wanted = golden["texts"], golden["ids"]
    assert len(texts) == len(wanted) == 2000
    rows = tokenizer.Tokenizer(context_length=max(map(len, wanted)))(texts)
    wrong = [ascii(text) for text, row, ids in zip(texts, rows, wanted)
             if row[:len(ids)].tolist() != ids or row[len(ids):].any()]
    assert not wrong


def test_hostile_strings_are_cut_to_the_length_of_a_row():
    golden = json.loads(gzip.decompress((GOLDEN / "hostile.json.gz").read_bytes()))
    long = [(text, ids) for text, ids in zip(golden["texts"], golden["ids"]) if len(ids) > 77]
    rows = tokenizer.Tokenizer()([text for text, _ in long])
    np.testing.assert_array_equal(rows, [[*ids[:76], END] for _, ids in long])


def test_special_strings_count_at_the_start_of_a_word_only():
    cat, exclamation = ids_of("cat")[1], ids_of("!")[1]
    assert ids_of("<END_OF_TEXT>cat") == padded(START, END, cat, END)
    assert ids_of("cat<start_of_text>") == padded(START, cat, START, END)
    assert ids_of("<end_of_text>!") == padded(START, END, exclamation, END)
    assert END not in ids_of("!<end_of_text>")[1:3]  # "!<" is a run of other characters


def test_a_mark_with_a_letter_for_its_capital_vanishes_and_parts_words():
    assert ids_of("a\u0345b") == ids_of("a b")  # ignoring case, U+0345 is the letter iota


def test_nothing_is_repaired_in_plain_ascii(rng):
    letters = [chr(c) for c in range(32, 127) if chr(c) != "&"]
    for text in ["".join(letters), *("".join(rng.choice(letters, 40)) for _ in range(500))]:
        assert ftfy.fix_text(text) == text == html.unescape(text)
    assert tokenizer.clean("a &amp;amp; b\tC") == "a & b c"


def test_merges_are_the_published_file():
    digest = hashlib.sha256(tokenizer._MERGES.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert tokenizer._MERGES.with_name("bpe_simple_vocab_16e6.LICENSE").is_file()


def test_missing_merges_are_an_error_that_names_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tokenizer, "_MERGES", tmp_path / "merges.txt.gz")
    with pytest.raises(FileNotFoundError, match="merges.txt.gz"):
        tokenizer._merges.__wrapped__()  # past the cache


def test_a_tips_tokenizer_lowers_ascii_cuts_without_an_end_and_knows_its_file(tmp_path):
    file = pieces.tips_vocabulary(tmp_path)
    tips = tokenizer.TIPSTokenizer(file, 6)
    ids = tips(["a CAT", "a cat", "", "cat " * 20, "ÜBER", "Über"])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert 0 < (ids[0] != 0).sum() < 6 and not ids[2].any()
    assert ids[3].all() and not (ids == 2).any() and not (ids == 3).any()  # neither end nor start
    np.testing.assert_array_equal(ids[4], ids[5])  # each text for itself, beside one that is cut
    np.testing.assert_array_equal(tips(["a cat"])[0], ids[0])
    siglip = pathlib.Path(__file__).parents[1] / "golden/siglip/tokenize/gemmalike.model"
    with pytest.raises(ValueError, match="gemmalike.model has the padding token 0 and the start "
                                         "token .*wanted 0 and 3: give TIPS's vocabulary"):
        tokenizer.TIPSTokenizer(str(siglip), 6)
    model = maskclippp.MaskCLIPppConfig.of_uncut(
        tips_model.TIPSConfig.b14(), tips_model.TIPSTextConfig.b14())
    names = vocabulary.Vocabulary.from_string("cat;dog,puppy")
    with pytest.raises(ValueError, match="tips.model has 64 pieces, the text tower 32000; give"):
        loading.tokenize(model, names, ("{}",), file)
    with pytest.raises(ValueError, match="of a TIPS needs its vocabulary.*--config.sentencepiece"):
        loading.tokenize(model, names, ("{}",))
    model = dataclasses.replace(model, text=dataclasses.replace(model.text, vocab_size=64))
    assert loading.tokenize(model, names, vocabulary.TEMPLATES_TIPS, file).shape[:2] == (3, 9)
