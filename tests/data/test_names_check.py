"""What `names --check` says of names: duplicates, cut ones, those that captions have not."""

import pytest

from maskclippp_jax.data import names_check
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary


def remarks(text, **options) -> dict[str, str]:
    found = names_check.check(text, "n.txt", TEMPLATES_14, **options)
    return {name.name: "; ".join(name.remarks) for name in found.names}


def test_names_of_captions_get_no_remark():
    text = "sky\tstuff\nblack cat,cat\nwet asphalt\nT-shirt\nrhythm\n"
    assert set(remarks(text).values()) == {""}


@pytest.mark.parametrize("name, says", [
    ("cat_blk", "has _; write 'cat blk'; 'blk' is an abbreviation; write it out"),
    ("trafficLight", "is written together; put blanks between its words"),
    ("tree #", "signs that captions have not"), ("type 7", "has digits"),
    ("dermatofibroma", "'dermatofibroma' is rare in captions (5 pieces)"),
    ("Background", "names no thing; give it to predict as --else")])
def test_what_is_not_like_a_caption_is_told(name, says):
    assert says in remarks(f"sky\n{name}\n")[name]


def test_names_that_are_there_twice_are_told_with_their_first_place():
    found = names_check.check("cat\nblack_cat\ndog,black cat\n", "n.txt", TEMPLATES_14)
    assert found.names[2].remarks == [] and found.refused is None
    assert found.names[3].remarks == ["twice: is 'black_cat' of class 1"]
    assert "line 2: 'Cat' is 'cat' of line 1" in names_check.check(
        "cat\nCat\n", "n.txt", TEMPLATES_14).refused


def test_a_copy_of_a_shipped_file_is_not_refused():
    copy = Vocabulary.shipped("ade20k_150").to_text()
    assert names_check.check(copy, "n.txt", TEMPLATES_14).refused is None


def test_names_of_another_vocabulary_are_marked():
    found = remarks("sky\nTraffic_Light\nlynx\n", other=Vocabulary.from_string("sky;traffic light"))
    assert found["sky"] == "in command line" and found["lynx"] == ""
    assert "in command line as 'traffic light', which is another name" in found["Traffic_Light"]


def test_what_does_not_fit_into_a_prompt_is_told_to_the_token():
    # The longest template, "There is a medium {} in the scene.", has eight tokens of its own.
    fits = " ".join(["cat"] * 67)
    found = names_check.check(f"{fits}\n{fits} dog\n", "n.txt", TEMPLATES_14)
    assert [name.tokens for name in found.names] == [67, 68]
    assert found.names[0].remarks == []
    assert found.names[1].remarks == ["cut: 68 tokens, 67 fit into the longest template"]
