import numpy as np
import pytest

from maskclippp_jax.data.tokenizer import Tokenizer
from maskclippp_jax.models.text import TextConfig
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary, draw_synonyms


@pytest.mark.parametrize("name, classes, synonyms", [
    ("coco_stuff_171", 171, 328), ("coco_panoptic_133", 133, 254), ("ade20k_150", 150, 403),
    ("scenes", 78, 78), ("scenes_seen", 59, 59)])
def test_shipped_vocabularies_have_the_published_sizes(name, classes, synonyms):
    vocabulary = Vocabulary.shipped(name)
    assert (vocabulary.num_classes, vocabulary.num_synonyms) == (classes, synonyms)
    assert Vocabulary.from_text(vocabulary.to_text(), name) == vocabulary


@pytest.mark.parametrize("training, seen", [("coco_stuff_171", 67), ("coco_panoptic_133", 64)])
def test_seen_classes_of_ade20k_are_the_published_ones(training, seen):
    assert Vocabulary.shipped("ade20k_150").seen_in(Vocabulary.shipped(training)).sum() == seen


def test_prompts_go_class_by_class_name_by_name_template_by_template():
    vocabulary = Vocabulary.from_string("cat;dog,puppy")
    assert vocabulary.prompts(["a {}.", "the {}"]) == [
        "a cat.", "the cat", "a dog.", "the dog", "a puppy.", "the puppy"]
    assert vocabulary.synonym_class.tolist() == [0, 1, 1]
    assert len(TEMPLATES_14) == 14


def test_synonyms_are_drawn_from_their_own_class():
    vocabulary = Vocabulary.from_string("a;b,c,d;e,f")
    drawn = np.array([draw_synonyms(vocabulary, np.random.default_rng(i)) for i in range(60)])
    assert [sorted(set(column)) for column in drawn.T] == [[0], [1, 2, 3], [4, 5]]


@pytest.mark.parametrize("text, words", [
    ("", "is empty"), (" ; ", "is empty"), ("cat;dog,", "empty name"),
    ("cat;dog,cat", "'cat' more than once")])
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
    with pytest.raises(ValueError, match="no vocabulary 'ade'; there are ade20k_150"):
        Vocabulary.shipped("ade")


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
