"""`predict`: what people may type, where results go, and that they are those of the API."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import maskclippp_jax as mc
from maskclippp_jax.data import picture_files, scenes
from tests import tiny_eomt, whole_runs

CLASSES = "red one;grey grass,dog"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A configuration, and pictures with label maps: in/a.png, in/sub/a.png, in/sub/b.jpg."""
    folder = tmp_path_factory.mktemp("a place")
    (folder / "tiny.py").write_text(whole_runs.CONFIG)
    for number, name in enumerate(("a", "sub/a", "sub/b")):
        scene = scenes.draw_scene(np.random.default_rng(number), size=64)
        ending = ".jpg" if name.endswith("b") else ".png"
        for kind, array, end in (("in", scene.image, ending),
                                 ("masks", (scene.label + 1).astype(np.uint8), ".png")):
            file = folder / kind / (name + end)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
    return folder


def predict(place, *words):
    common = ["--checkpoint=untuned", f"--config={place}/tiny.py"]
    return whole_runs.command(place, "predict", *words, *common, cwd=place)


def same(mine, yours) -> None:
    """Compares JSON: numbers to float32's rounding, for another process compiles anew."""
    if isinstance(mine, dict):
        assert mine.keys() == yours.keys()
        mine, yours = list(mine.values()), list(yours.values())
    if isinstance(mine, list):
        assert len(mine) == len(yours)
        for x, y in zip(mine, yours):
            same(x, y)
    else:
        assert mine == (pytest.approx(yours, rel=1e-5) if isinstance(yours, float) else yours)


def test_a_second_start_traces_no_model_and_writes_the_same(place, monkeypatch):
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")

    def start(output):
        done = predict(place, "--masks=masks/{stem}.png", "in", f"--classes={CLASSES}",
                       f"--output={output}", "--programs=programs")
        assert done.returncode == 0, done.stderr
        traced = set(re.findall(r"Finished tracing (\S+) for jit", done.stderr))
        return traced, {f.relative_to(place / output): f.read_bytes()
                        for f in (place / output).rglob("*.*")}

    traced, first = start("first")
    assert {"flat", "tower", "scorer"} <= traced
    traced, second = start("second")
    assert traced == {"fold", "tower", "scorer"}  # texts, which are one operation each
    assert second == first and len(first) == 9


def test_a_folder_with_masks_gives_what_the_api_gives(place):
    done = predict(place, "--masks=masks/{stem}.png", "in", f"--classes={CLASSES}", "--output=out",
                   "--view=photograph", "--view=segments")
    assert done.returncode == 0, done.stderr
    assert "warning: this model has never seen 'dog'; it knows the words" in done.stderr
    assert "masks of 3 pictures; wrote out/*.overlay.png" in done.stderr and done.stdout == ""
    written = {str(f.relative_to(place / "out")): f.read_bytes()
               for f in (place / "out").rglob("*.*")}
    assert set(written) == {f"{name}.{end}" for name in ("a", "sub/a", "sub/b")
                            for end in ("json", "labels.png", "overlay.png")}
    found = json.loads(written["sub/a.json"])
    labels = np.asarray(Image.open(place / "masks/sub/a.png"))
    assert [m["segment"] for m in found["masks"]] == sorted(set(labels.ravel().tolist()) - {0})
    for mask in found["masks"]:
        assert sum(b["score"] for b in mask["best"]) == pytest.approx(1, abs=1e-4)
    drawn = np.asarray(Image.open(place / "out/a.labels.png"))
    assert drawn.shape == (64, 64) and set(np.unique(drawn)) <= {0, 1}

    model = mc.load("untuned", f"{place}/tiny.py", keep_embeddings=False)
    with pytest.warns(UserWarning, match="has never seen 'dog'"):
        words = model.vocabulary(CLASSES)
    for name, ending in (("a", "png"), ("sub/a", "png"), ("sub/b", "jpg")):
        result = model.name(place / f"in/{name}.{ending}", place / f"masks/{name}.png", words)
        assert result._given.path == f"{place}/in/{name}.{ending}"
        result._given = result._given._replace(path=f"in/{name}.{ending}")  # as it was typed
        result.save(place / "api", name, masks_from=f"masks/{name}.png",
                    views=["photograph", "segments"])
        for end in ("labels.png", "overlay.png"):
            assert (place / f"api/{name}.{end}").read_bytes() == written[f"{name}.{end}"]
        same(json.loads((place / f"api/{name}.json").read_text()),
             json.loads(written[f"{name}.json"]))


def test_broken_pictures_end_all_or_are_named_counted_and_left_out(place, tmp_path):
    for name, content in (("a.png", (place / "in/a.png").read_bytes()), ("b.png", b"none"),
                          ("c.png", (place / "in/a.png").read_bytes()[:200])):
        (tmp_path / name).write_bytes(content)
    words = [str(tmp_path), "--classes=red one", "--regions=grid", f"--output={tmp_path}/out"]
    done = predict(place, *words)
    assert done.returncode == 2 and "b.png cannot be read as a picture" in done.stderr
    assert not (tmp_path / "out").exists()  # its header tells, so nothing was written
    done = predict(place, *words, "--skip_broken", "--batch_size=2")
    assert done.returncode == 0, done.stderr
    assert "; left out 2; wrote" in done.stderr
    assert all(f"left out: {tmp_path}/{n}.png cannot be read" in done.stderr for n in "bc")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "a.json", "a.labels.png", "a.overlay.png"}
    assert "grid" in json.loads((tmp_path / "out/a.json").read_text())["masks_from"]


def test_a_generator_finds_the_masks(place):
    tiny_eomt.write_folder(place / "generator")
    done = predict(place, "in", "--generator=generator", "--classes=red one;grey grass",
                   "--output=found", "--batch_size=2", "--format=json,coco,labelme")
    assert done.returncode == 0, done.stderr
    assert "wrote found/*.overlay.png, *.labels.png, *.json, coco/, labelme/" in done.stderr
    coco = json.loads((place / "found/coco/instances.json").read_text())
    assert [i["file_name"] for i in coco["images"]] == ["a.png", "sub/a.png", "sub/b.jpg"]
    model = mc.load("untuned", f"{place}/tiny.py", generator=place / "generator",
                    keep_embeddings=False)
    for name, ending in (("a", "png"), ("sub/a", "png"), ("sub/b", "jpg")):
        found = json.loads((place / f"found/{name}.json").read_text())
        assert found["masks_from"] == "generator generator"
        result = model.segment(place / f"in/{name}.{ending}", "red one;grey grass")
        assert [m["segment"] for m in found["masks"]] == result.ids.tolist()
        shapes = json.loads((place / f"found/labelme/{name}.json").read_text())["shapes"]
        assert [s["label"] for s in shapes] == [
            m["name"] for m in found["masks"] if m["pixels"]] != []
        for mask, (best, *_) in zip(found["masks"], result.top()):
            assert mask["name"] == best[0] and mask["score"] == pytest.approx(best[1], abs=1e-4)


@pytest.mark.parametrize("words, says", [
    (["in", "--classes=a"], "nothing says where masks come from; give --generator=eomt-l-640"),
    (["in", "--classes=a", "--regions=grid", "--generator=x"], "give one of --generator, --masks"),
    (["in", "--classes=a", "--generator=eomt-l-64"], "did you mean eomt-l-640?"),
    (["in"], "give either --classes="),
    (["in", "--classes=a;a"], "more than once"),
    (["in", "--classes=a", "--regions=grid", "--else=b;A"], "'A' is among the classes and among"),
    (["in", "--classes=a", "--regions=grid", "--format=json,pascal"], "formats ['pascal'], wanted"),
    (["--classes=a"], "got no picture"),
    (["in", "nothing*.jpg", "--classes=a"], "no file nothing*.jpg, and none that fits"),
    (["in", "--classes=a", "--masks=masks/a.png"], "is one file for 3 pictures"),
    (["in", "--classes=a", "--masks=in/{stem}.tif"], "no file in/a.tif"),
    (["in", "--classes=a", "--regions=grid", "--config.templates=('a photo',)"],
     "templates has 'a photo'; it is a list of texts, each with one {}"),
])
def test_what_cannot_be_named_ends_in_one_sentence(place, words, says):
    done = predict(place, *words, "--output=never")
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (place / "never").exists()


def test_names_of_results_are_paths_below_the_folder_of_all_pictures(place, monkeypatch):
    monkeypatch.chdir(place)
    names = lambda *words, **kw: [f.name for f in picture_files.find(words, **kw)]
    assert names("in") == names("in/*.png", "in/sub") == ["a", "sub/a", "sub/b"]
    assert names("in/sub") == names("in/sub/*") == ["a", "b"]
    assert names("in/a.png") == ["a"] and names("in/a.png", "in/a.png") == ["a"]
    assert names("in/sub/b.jpg", "masks/a.png") == ["in/sub/b", "masks/a"]
    assert names(str(place / "in"), "in/a.png") == ["a", "sub/a", "sub/b"]
    with pytest.raises(ValueError, match="the results of in/a.JPG and in/a.png would overwrite"):
        (place / "in/a.JPG").write_bytes(b"")
        names("in")
    (place / "in/a.JPG").unlink()


def test_results_and_label_maps_in_the_same_folder_are_no_pictures(place, monkeypatch):
    monkeypatch.chdir(place)
    names = lambda *words, **kw: [f.name for f in picture_files.find(words, **kw)]
    assert names("in", leave_out=["in/sub"]) == ["a"]
    (place / "in/a_mask.png").write_bytes((place / "masks/a.png").read_bytes())
    try:
        assert names("in") == ["a", "a_mask", "sub/a", "sub/b"]
        assert names("in", masks="in/{stem}_mask.png") == ["a", "sub/a", "sub/b"]
    finally:
        (place / "in/a_mask.png").unlink()


def test_hidden_files_and_folders_are_no_pictures(tmp_path):
    folder = tmp_path / ".album"  # which was named itself
    for name in ("a.jpg", "._a.jpg", ".thumbnails/a.jpg", "b/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    assert [p.name for p in picture_files.find([str(folder)])] == ["a", "b/c"]


def test_pictures_in_the_folder_of_the_results_are_found_and_results_are_not(tmp_path):
    for name in ("a.png", "a.overlay.png", "a.labels.png", "a.json", "b.labels.png", "voc/c.png",
                 "out/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = picture_files.find([str(tmp_path)], leave_out=[str(tmp_path), f"{tmp_path}/voc"])
    assert [p.name for p in found] == ["a", "b.labels", "out/a"]
    found = picture_files.find([str(tmp_path)], leave_out=[f"{tmp_path}/out"])
    assert [p.name for p in found] == ["a", "b.labels", "voc/c"]
    assert [p.name for p in picture_files.find([f"{tmp_path}/out"],
                                               leave_out=[str(tmp_path)])] == ["a"]


@pytest.mark.parametrize("words, lost", [
    ("@/a.png --masks=@/{stem}.json", "a.json"),
    ("@/a.png --masks=@/{stem}.labels.png", "a.labels.png"),
    ("@/a.png @/a.overlay.png --regions=grid", "a.overlay.png"),
    ("@/a.png --masks=@/voc/{stem}.png --format=voc", "voc/a.png")])
def test_results_take_the_place_of_nothing_that_they_are_made_from(place, tmp_path, words, lost):
    (tmp_path / "voc").mkdir()
    for name in ("a.png", "a.overlay.png"):
        (tmp_path / name).write_bytes((place / "in/a.png").read_bytes())
    for name in ("a.labels.png", "voc/a.png"):
        (tmp_path / name).write_bytes((place / "masks/a.png").read_bytes())
    (tmp_path / "a.json").write_text("[]")
    contents = lambda: {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    before = contents()
    done = predict(place, *words.replace("@", str(tmp_path)).split(), "--classes=red one",
                   f"--output={tmp_path}")
    assert done.returncode == 2 and f"would take the place of {tmp_path}/{lost}" in done.stderr
    assert contents() == before


def test_an_upright_header_is_enough_to_see_that_a_label_map_fits(place, tmp_path):
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "a.jpg", exif=exif)
    for name, size in (("fits", (20, 40)), ("does_not", (40, 20))):
        Image.new("L", size).save(tmp_path / f"{name}.png")
    check = lambda name: picture_files.check(
        picture_files.find([str(tmp_path / "a.jpg")], masks=str(tmp_path / f"{name}.png")),
        skip_broken=False)
    assert len(check("fits")[0]) == 1
    with pytest.raises(ValueError, match="does_not.png has 40x20 pixels, its picture 20x40"):
        check("does_not")
