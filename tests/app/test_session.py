"""What the page does between a question and an answer, without a browser."""

import io
import json
import threading
import types

import jax.monitoring
import numpy as np
import pytest
from PIL import Image

import maskclippp_jax as mc
from maskclippp_jax.app import downloads, session as sessions, uploads, views
from maskclippp_jax.app.session import Question, Session
from maskclippp_jax.app.uploads import Limits, Upload
from maskclippp_jax.data import mask_files, scenes
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.naming.namer import Namer
from tests import tiny_eomt, whole_runs

WORDS = "red one; grey grass; brown brick"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a model")
    (folder / "tiny.py").write_text(whole_runs.CONFIG)
    generator = mc.load_generator(tiny_eomt.write_folder(folder / "generator"), objectness=0.0)
    return mc.load("untuned", f"{folder}/tiny.py", generator=generator, keep_embeddings=False)


def upload(folder, number, height=64, width=64):
    pixels = scenes.draw_scene(np.random.default_rng(number), size=96).image[:height, :width]
    Image.fromarray(pixels).save(folder / f"{number}.png")
    return Upload(str(folder / f"{number}.png"), f"photo {number}.png")


def ask(model, question, visit=None, limits=Limits()):
    visit = sessions.answer(model, "mc.load(...)", question, visit or Session(), limits)
    return visit, views.view(visit.result, visit.notes)


@pytest.fixture
def compiled():
    """Names of programs, as they are compiled."""
    found, listening = [], True

    def listen(event, *_, **more):
        if listening and event.startswith("/jax/core/compile/backend_compile"):
            found.append(more)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    listening = False


@pytest.mark.parametrize("masks", [sessions.GENERATOR, sessions.REGIONS])
def test_a_second_picture_of_like_size_and_other_words_compile_nothing(model, masks, tmp_path,
                                                                       compiled):
    visit, first = ask(model, Question(upload(tmp_path, 1), WORDS, masks=masks))
    assert compiled or masks != sessions.GENERATOR
    compiled.clear()
    visit, second = ask(model, Question(upload(tmp_path, 2, 60, 60), WORDS, masks=masks), visit)
    ask(model, Question(upload(tmp_path, 2, 60, 60), "blue three; pink coins", masks=masks), visit)
    assert compiled == []
    assert second["picture"] != first["picture"]


def test_other_words_do_not_look_at_the_picture_again(model, tmp_path, monkeypatch):
    picture = upload(tmp_path, 1)
    visit, _ = ask(model, Question(picture, WORDS))
    monkeypatch.setattr(Namer, "see", None)
    monkeypatch.setattr(uploads, "read_picture", None)
    again, shown = ask(model, Question(picture, "blue three; red one"), visit)
    assert again.seen is visit.seen and again.result is not visit.result
    assert {row["name"] for row in shown["masks"]} <= {"blue three", "red one"}
    with pytest.raises(TypeError):  # other masks need another look
        ask(model, Question(picture, WORDS, masks=sessions.REGIONS), visit)


def test_what_is_shown_is_ordered_by_area_and_adds_up(model, tmp_path):
    visit, shown = ask(model, Question(upload(tmp_path, 3), WORDS, masks=sessions.REGIONS))
    json.dumps(shown)
    for layer in shown["layers"].values():
        shares = [item["share"] for item in layer["items"]]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-3)
        assert all(0 < item["x"] < 1 and 0 < item["y"] < 1 for item in layer["items"])
    assert len(shown["layers"]["segments"]["items"]) == len(visit.result)
    assert shown["width"] == 512 and shown["crisp"]


def test_a_white_mask_is_told_of_as_long_as_it_is_the_mask(model, tmp_path):
    picture, white = upload(tmp_path, 6), np.zeros((64, 64), np.uint8)
    white[10:40, 20:50] = 255
    Image.fromarray(white).save(tmp_path / "0123.png")
    masks = Upload(str(tmp_path / "0123.png"), "white.png")
    visit, says = None, ["white.png holds 0 and 255 alone, and 255 means nothing; if it is one "
                         "mask in white, invert it"]
    for words in (WORDS, "red one"):
        visit, shown = ask(model, Question(picture, words, masks=sessions.FILE, masks_file=masks),
                           visit)
        assert shown["notes"] == says
    assert ask(model, Question(picture, WORDS, masks=sessions.REGIONS), visit)[1]["notes"] == []


def test_whoever_asks_for_words_that_the_model_has_never_seen_is_told(model, tmp_path):
    picture = upload(tmp_path, 7)
    for _ in range(2):  # visits
        _, shown = ask(model, Question(picture, "red one; zebra", masks=sessions.REGIONS,
                                       distractors="gnu"))
        assert shown["notes"][0] == "this model has never seen 'gnu', 'zebra'"


def test_large_pictures_are_scaled_and_the_lines_say_so(model, tmp_path):
    picture = upload(tmp_path, 4, 90, 80)
    visit, shown = ask(model, Question(picture, WORDS, masks=sessions.REGIONS),
                       limits=Limits(side=45))
    assert visit.result.image.shape == (45, 40, 3)
    assert shown["notes"] == ["the picture was scaled from 80x90 to 40x45 pixels; label maps "
                              "and COCO files have its own size"]
    assert "images.read_image('photo 4.png'), (45, 40))" in visit.code
    # What is laid over the picture as it came fits it.
    labels = np.asarray(Image.open(io.BytesIO(downloads.content_of("labels", visit)[1])))
    np.testing.assert_array_equal(labels, visit.result.labels.repeat(2, 0).repeat(2, 1))
    coco = json.loads(downloads.content_of("coco", visit)[1])
    assert [(x["file_name"], x["height"], x["width"]) for x in coco["images"]] == [
        ("photo 4.png", 90, 80)]
    assert [x["area"] for x in coco["annotations"]] == [
        4 * n for n in visit.result.pixels[visit.result.pixels > 0]]
    found = mask_files.decode_all([x["segmentation"] for x in coco["annotations"]], (90, 80), "x")
    np.testing.assert_array_equal(found[0], np.asarray(
        visit.result.annotated().masks[0]).repeat(2, 0).repeat(2, 1))


def test_limits_end_in_a_sentence(model, tmp_path):
    picture = upload(tmp_path, 5)
    masks = tmp_path / "0123.npy"
    np.save(masks, np.arange(64 * 64).reshape(64, 64) // 8)
    for limits, question, says in (
            (Limits(pixels=1000), Question(picture, WORDS), "64x64 pixels, more than the"),
            (Limits(num_bytes=100), Question(picture, WORDS), "photo 5.png has 0 MB, more than"),
            (Limits(names=2), Question(picture, WORDS), "there are 3 names, more than the 2"),
            (Limits(), Question(picture, WORDS, masks=sessions.FILE, masks_file=Upload(
                str(masks), "own.npy")), "own.npy holds 51"),
            (Limits(), Question(picture, WORDS, masks=sessions.DRAWN), "nothing is drawn yet"),
            (Limits(), Question(Upload("gone.png", "gone.png"), WORDS), "is no longer here")):
        with pytest.raises(ValueError, match=says):
            ask(model, question, limits=limits)


def test_a_json_of_several_pictures_is_asked_for_the_one_that_is_shown(tmp_path):
    file = tmp_path / "0123.json"
    file.write_text(json.dumps(dict(
        images=[dict(id=n, file_name=f"photos/{n}.jpg") for n in (1, 2)],
        annotations=[dict(image_id=n, segmentation=[[0, 0, n, 0, n, 2, 0, 2]]) for n in (1, 2)])))
    read = lambda name: uploads.read_masks(Upload(str(file), "own.json"), (6, 8), Limits(), name)
    assert read("2.jpg").sum() == 4
    with pytest.raises(ValueError, match="^own.json has masks of 2 pictures .* none of which is 3"):
        read("3.jpg")


def test_each_colour_of_the_brush_is_a_mask_and_the_last_one_lies_above():
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:4] = (*bytes.fromhex(uploads.BRUSH[1][1:]), 255)
    layer[6:] = (*bytes.fromhex(uploads.BRUSH[3][1:]), 90)  # the soft border of a stroke
    above = np.zeros_like(layer)
    above[:2] = (*bytes.fromhex(uploads.BRUSH[0][1:]), 255)
    decoded = [run_lengths.decode(mask)
               for mask in uploads.drawn_masks([layer, above, None], (16, 16))]
    assert [mask.sum() for mask in decoded] == [4 * 16, 4 * 16] and decoded[0][:4].all()


def test_a_bounded_number_waits_and_the_rest_is_told(tmp_path, monkeypatch):
    testclient = pytest.importorskip("starlette.testclient")
    from maskclippp_jax.app import server

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    go_on = threading.Event()
    slow = types.SimpleNamespace(
        title="slow", generator=None, seen=lambda *_: go_on.wait(60) and None,
        config=types.SimpleNamespace(eval=types.SimpleNamespace(dataset="none")))
    app = server.make_app(slow, "mc.load(...)", Limits(waiting=2), str(tmp_path))
    (tmp_path / "up").mkdir()
    picture = upload(tmp_path / "up", 1)
    with testclient.TestClient(app) as client:
        number = next(d["id"] for d in client.get("/config").json()["dependencies"]
                      if len(d["inputs"]) > 8)
        content = dict(path=picture.path, orig_name="a.png", meta={"_type": "gradio.FileData"})
        data = [content, WORDS, "", None, sessions.REGIONS, None, None, "", 0, None]
        join = lambda visitor: client.post("/gradio_api/queue/join", json=dict(
            data=data, fn_index=number, session_hash=visitor, event_data=None, trigger_id=None))
        replies = [join(f"visitor {n}") for n in range(6)]
        go_on.set()
    assert [r.status_code for r in replies[:2]] == [200, 200]
    assert replies[-1].status_code >= 400 and "Queue is full" in replies[-1].text
