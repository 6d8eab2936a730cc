"""JSON of a known shape, and the one sentence about any other."""

import json
import typing

import msgspec
import pytest

from maskclippp_jax.runtime import typed


class Item(msgspec.Struct):
    id: typed.Id | str | None
    segmentation: list | dict | None
    area: float | None = None
    sizes: list[int] = []


class Content(msgspec.Struct):
    annotations: list[Item]
    by_name: dict[str, Item] = {}


def item(number: int = 1, **changes) -> dict:
    return dict(id=number, segmentation=[]) | changes


def test_what_fits_is_read():
    got = typed.decode(b"\xef\xbb\xbf" + json.dumps(dict(
        annotations=[item(1, area=5), item("b", segmentation={"a": 1})], more=1)).encode(),
        Content, "f.json")
    assert got.annotations[0] == Item(1, [], 5.0)
    assert got.annotations[1] == Item("b", {"a": 1})


def content(*items, **by_name) -> bytes:
    return json.dumps(dict(annotations=list(items), by_name=by_name)).encode()


@pytest.mark.parametrize("data, says", [
    (content(item(1), item(2, segmentation="x"), item(3)),
     r"at annotations\[1, id 2\].segmentation: got str, wanted object | array | nothing"),
    (content(item(1), item(2, sizes=[1, 2, "3"])),
     r"at annotations\[1, id 2\].sizes\[2\]: got str, wanted int"),
    (content(item(1), dict(id=7)), r"at annotations\[1, id 7\]: there is no segmentation"),
    (content(a=item(1), b=item(9, segmentation=5)), r"at by_name\['b', id 9\].segmentation: got"),
    (content(item(2**70)), r"at annotations\[0, id 1180591620717411303424\].id: expected int <="),
    (b"[1]", "got array, wanted object"),
    (b"", r"is no JSON \(it is empty\)"),
    (b"nope", "is no JSON"),
    (b'{"annotations": [', r"is no JSON \(Input data was truncated\)"),
    (b'{"annotations": [{"id": 1, "segmentation": [NaN]}]}', "it holds NaN, byte 44"),
    (b'{"annotations": [{"id": 1, "segmentation": [-Infinity]}]}', "it holds Infinity"),
    (b'{"annotations": [{"id": "\xe9", "segmentation": []}]}', "is no JSON in UTF-8"),
    ("{}".encode("utf-16"), r"in UTF-8 \(it is in UTF-16; save it as UTF-8\)"),
    (b'{"annotations": [], "annotations": []}', "gives 'annotations' twice in one object"),
])
def test_what_does_not_fit_is_one_sentence(data, says):
    with pytest.raises(ValueError, match=f"f.json.*{says}") as caught:
        typed.decode(data, Content, "f.json")
    assert "\n" not in str(caught.value)


def test_what_nests_too_deeply_is_refused_and_no_stack_overflows():
    for opening in (b"[", b'{"a":'):
        with pytest.raises(ValueError, match="nests too deeply"):
            typed.decode(opening * 200_000, typing.Any, "f.json")


def test_one_wrong_item_among_many_is_found():
    rows = [[n] for n in range(5000)]
    rows[3210] = ["x"]
    with pytest.raises(ValueError, match=r"at \[3210\]\[0\]: got str, wanted int"):
        typed.decode(json.dumps(rows).encode(), list[list[int]], "f.json")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*a.json"):
        typed.read(tmp_path / "a.json", list)
