import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from maskclippp_jax.data.tokenizer import Tokenizer
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary, draw_synonyms, shipped_names

FACTS = json.loads((pathlib.Path(__file__).parent / "fixtures/vocabulary.json").read_text())


@pytest.mark.parametrize("name", FACTS["vocabularies"])
def test_shipped_vocabularies_are_the_published_ones_to_the_letter(name):
    vocabulary = Vocabulary.shipped(name)
    facts = FACTS["vocabularies"][name]
    assert (vocabulary.num_classes, vocabulary.num_synonyms) == (facts["classes"], facts["names"])
    colors = vocabulary.colors or [None] * vocabulary.num_classes
    rows = list(zip(vocabulary.classes, vocabulary.is_thing, vocabulary.dataset_ids, colors))
    assert hashlib.sha1(json.dumps(rows).encode()).hexdigest() == facts["sha1"]
    assert Vocabulary.from_text(vocabulary.to_text(), name) == vocabulary


@pytest.mark.parametrize("training", FACTS["seen_ids_as_bits"])
def test_seen_classes_are_the_published_ones(training):
    known = Vocabulary.shipped(training)
    for name, bits in FACTS["seen_ids_as_bits"][training].items():
        seen = Vocabulary.shipped(name).seen_in(known)
        assert sum(1 << int(i) for i in np.flatnonzero(seen)) == int(bits, 16), name


def test_every_shipped_vocabulary_is_checked():
    assert {*FACTS["vocabularies"], "scenes", "scenes_seen"} == set(shipped_names())


def test_a_names_file_loads_like_a_shipped_vocabulary(tmp_path):
    (tmp_path / "mine.txt").write_text("cat\tthing\t7\t#0102ff\nsky, clouds\tstuff\t3\n")
    mine = Vocabulary.load(str(tmp_path / "mine.txt"))
    assert mine.classes == (("cat",), ("sky", "clouds")) and mine.dataset_ids == (7, 3)
    assert mine.is_thing == (True, False) and mine.colors == ((1, 2, 255), None)
    assert Vocabulary.from_text(mine.to_text(), mine.name) == mine
    assert Vocabulary.load("ade20k_150") == Vocabulary.shipped("ade20k_150")


def run_names(*arguments):
    return subprocess.run([sys.executable, "-m", "maskclippp_jax", "names", *arguments],
                          capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})


def test_the_names_command_shows_synonyms_and_overlap(tmp_path):
    shown = run_names("cityscapes_19", "--overlap=coco_stuff_171")
    assert "17 of 19 classes of cityscapes_19 are seen in coco_stuff_171, 2 are unseen" in (
        " ".join(shown.stdout.split()))
    rider = next(line for line in shown.stdout.splitlines() if "rider" in line)
    assert "unseen" in rider and "25" in rider and "#ff0000" in rider
    (tmp_path / "mine.txt").write_text("cat\nlynx\n")
    assert "1 of 2 classes of mine.txt are seen" in run_names(
        str(tmp_path / "mine.txt"), "--overlap=coco_stuff_171").stdout
    checked = run_names(f"--check={tmp_path}/mine.txt", "--overlap=coco_stuff_171")
    assert checked.returncode == 0 and "in coco_stuff_171" in checked.stdout
    (tmp_path / "mine.txt").write_text("cat\nCat\n")
    checked = run_names(f"--check={tmp_path}/mine.txt")
    assert checked.returncode == 1 and "commands refuse this file" in checked.stdout
    assert "lvis_1203" in run_names().stdout
    for wrong in (["nope"], ["--check=nope.txt"], ["scenes", "scenes_seen"], ["--overlap=scenes"]):
        result = run_names(*wrong)
        assert result.returncode == 2 and result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def test_prompts_go_class_by_class_name_by_name_template_by_template():
    vocabulary = Vocabulary.from_string("cat;dog,puppy")
    assert vocabulary.prompts(["a {}.", "the {}"]) == [
        "a cat.", "the cat", "a dog.", "the dog", "a puppy.", "the puppy"]
    assert Vocabulary.from_string("a{};{x}").prompts(["the {}."]) == ["the a{}.", "the {x}."]
    assert vocabulary.synonym_class.tolist() == [0, 1, 1]
    assert len(TEMPLATES_14) == 14


def test_synonyms_are_drawn_from_their_own_class():
    vocabulary = Vocabulary.from_string("a;b,c,d;e,f")
    drawn = np.array([draw_synonyms(vocabulary, np.random.default_rng(i)) for i in range(60)])
    assert [sorted(set(column)) for column in drawn.T] == [[0], [1, 2, 3], [4, 5]]


@pytest.mark.parametrize("text, words", [
    ("", "is empty"), (" ; ", "is empty"), ("cat;dog,", "empty name"),
    ("cat;dog,cat", "'cat' more than once"), ("Cat;dog,cat", "'cat' is 'Cat' to the model"),
    ("grass\ncoins", r"'grass\\ncoins' holds a line break"), ("a\x01b", "control character"),
    ("cat;# 1 bolt", "'# 1 bolt' starts with \"# \", as comments")])
def test_a_bad_class_list_is_explained(text, words):
    with pytest.raises(ValueError, match=words):
        Vocabulary.from_string(text)


def test_bad_names_files_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="no names file"):
        Vocabulary.from_file(str(tmp_path / "x.txt"))
    (tmp_path / "x.txt").write_text("# only a comment\n\n")
    with pytest.raises(ValueError, match="holds no class"):
        Vocabulary.from_file(str(tmp_path / "x.txt"))
    (tmp_path / "x.txt").write_text("cat\tanimal\t3\n")
    with pytest.raises(ValueError, match="line 1.*wanted names"):
        Vocabulary.from_file(str(tmp_path / "x.txt"))
    for line, words in (("cat\tthing\t3\tred", "a colour like"),
                        ("cat\tthing\t\N{SUPERSCRIPT TWO}", "wanted names"),
                        ("cat\ndog\tthing\t0", "id 0 belongs to 'cat' already")):
        with pytest.raises(ValueError, match=words):
            Vocabulary.from_text(line, "x.txt")
    for name in ("d\x01g", "d\u2028g", "d\x0bg"):
        (tmp_path / "x.txt").write_text(f"cat\n{name}\n", "utf-8")
        with pytest.raises(ValueError, match="line 2: 'd.*g' holds a control character"):
            Vocabulary.from_file(str(tmp_path / "x.txt"))
    with pytest.raises(ValueError, match="no vocabulary 'ade'; there are ade20k_150"):
        Vocabulary.shipped("ade")
    (tmp_path / "x.csv").write_text("cat\n")
    assert Vocabulary.load(tmp_path / "x.csv").classes == (("cat",),)
    with pytest.raises(ValueError, match="the class list holds None, wanted names"):
        Vocabulary.from_names([None, "cat"])
    with pytest.raises(ValueError, match="got None for the classes, wanted a list"):
        Vocabulary.from_names(None)


def test_a_small_model_knows_its_words_and_says_which_it_does_not():
    config = TextConfig.quickstart()
    tokenizer = Tokenizer(config.context_length, words=config.words)
    assert tokenizer.vocab_size == config.vocab_size
    ids = tokenizer(["a photo of a red three.", "a photo of a cat."])
    assert ids.max(-1).tolist() == [config.vocab_size - 1] * 2  # the end token is the largest id
    assert 1 not in ids[0] and (ids[1] == 1).sum() == 1
    assert tokenizer.unknown_words(["a cat, a red dog"]) == ["cat", "dog"]
    prompts = Vocabulary.shipped("scenes").prompts(["a photo of a {}."])
    assert tokenizer.unknown_words(prompts) == []


def test_a_long_prompt_is_cut_and_still_ends():
    ids = Tokenizer(8)(["one two three four five six seven eight nine ten"])
    assert ids.shape == (1, 8) and ids[0, 0] == 49406 and ids[0, -1] == 49407
