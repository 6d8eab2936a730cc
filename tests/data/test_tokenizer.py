"""CLIP's tokenizer against OpenCLIP's; golden/tokenizer/make.py made the files."""

import gzip
import hashlib
import json
import pathlib

import numpy as np
import pytest

from maskclippp_jax import vocabulary
from maskclippp_jax.data import tokenizer

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


def test_merges_are_the_published_file():
    digest = hashlib.sha256(tokenizer._MERGES.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert tokenizer._MERGES.with_name("bpe_simple_vocab_16e6.LICENSE").is_file()


def test_missing_merges_are_an_error_that_names_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tokenizer, "_MERGES", tmp_path / "merges.txt.gz")
    with pytest.raises(FileNotFoundError, match="merges.txt.gz"):
        tokenizer._merges.__wrapped__()  # past the cache
