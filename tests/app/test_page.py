"""The page in a real browser: headless Chromium, driven through Playwright, on a server that is the
real command with the shipped small models."""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import maskclippp_jax as mc
from maskclippp_jax.data import scenes
from tests import whole_runs

pytest.importorskip("gradio", reason="no Gradio: pip install 'maskclippp_jax[app]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed; apt install chromium brings one")
WORDS = "red one; green two, green three; brown brick; grey coins"
LONG = 120_000  # milliseconds: programs may still be compiled on a busy machine


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two pictures of like size with label maps, and what is none."""
    folder = tmp_path_factory.mktemp("a page")
    for name, seed, side in (("a", 5, 96), ("b", 11, 96)):
        scene = scenes.draw_scene(np.random.default_rng(seed), size=side)
        Image.fromarray(scene.image).save(folder / f"{name}.png")
        Image.fromarray(scene.segments).save(folder / f"{name}.masks.png")
    Image.new("L", (40, 30), 1).save(folder / "small.masks.png")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "paper.jpg").write_bytes(b"%PDF-1.7 no picture")
    (folder / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    (folder / "large.jpg").write_bytes(bytes(100 * 2**20))
    (folder / "latin.txt").write_bytes("grün eins\n".encode("latin-1"))
    (folder / "names.txt").write_text("green two\nbrown brick\n")
    return folder


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = whole_runs.command(None, "serve", "--checkpoint=untuned", "--config=quickstart",
                                "--generator=quickstart", f"--port={port}", wait=False)
    for line in server.stdout:
        if "the page is at" in line:
            break
    else:
        pytest.fail(f"the page did not come up: {line}")
    yield f"http://127.0.0.1:{port}/"
    assert server.poll() is None, "the server did not live on"
    mine = lambda: {f.name for f in pathlib.Path(tempfile.gettempdir()).glob("maskclippp_page_*")}
    before = mine()
    server.terminate()
    assert server.wait(30) == 0
    assert len(mine()) < len(before), "what was uploaded is still there"


@pytest.fixture(scope="module")
def browser():
    from playwright import sync_api

    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"])
        yield found
        found.close()


class Visitor:
    """What a person does."""

    def __init__(self, browser, address, **settings):
        self.context = browser.new_context(viewport=dict(width=1280, height=1000), **settings)
        self.tab = self.context.new_page()
        self.outside, self.wrong = [], []
        self.tab.on("request", lambda request: self.outside.append(request.url) if (
            not request.url.startswith((address, "data:", "blob:"))) else None)
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.goto(address)
        self.tab.locator("#go").wait_for(timeout=LONG)

    def give(self, where, file):
        self.tab.locator(f"#{where} input[type=file]").first.set_input_files(file)

    def show(self, file):
        """Gives a picture, in place of another one."""
        remove = self.tab.locator("#picture button[aria-label*=Clear], #picture "
                                  "button[aria-label*=Remove]")
        if remove.count():
            remove.first.click()
        self.give("picture", file)
        self.tab.locator("#picture img").first.wait_for(state="attached", timeout=LONG)

    def choose_masks(self, label):
        self.tab.get_by_label(label).check()

    def ask(self, words=None):
        """Asks; returns once the answer is shown."""
        before = self.answers
        self.press(words)
        self.tab.wait_for_function(
            "before => [...document.querySelectorAll('[data-answers]')].some("
            "e => Number(e.dataset.answers) > before)", arg=before, timeout=LONG)

    def press(self, words=None):
        if words is not None:
            self.tab.locator("#words textarea").fill(words)
        self.tab.locator("#go").click()

    @property
    def answers(self):
        return self.tab.evaluate("Math.max(0, ...[...document.querySelectorAll('[data-answers]')]"
                                 ".map(e => Number(e.dataset.answers)))")

    def refused(self, words=None):
        """The sentence that asking ends in."""
        self.press(words)
        return self.told()

    def told(self):
        toast = self.tab.locator(".toast-body").last
        toast.wait_for(timeout=LONG)
        text = toast.inner_text()
        for close in self.tab.locator(".toast-close").all():
            close.click()
        self.tab.locator(".toast-body").first.wait_for(state="detached", timeout=LONG)
        return text

    def legend(self):
        return self.tab.locator(".mc-legend-name").all_inner_texts()

    def download(self, kind):
        with self.tab.expect_download(timeout=LONG) as started:
            self.tab.locator(f"#download-{kind}").click()
        return started.value.suggested_filename, pathlib.Path(started.value.path()).read_bytes()


@pytest.fixture
def visitor(browser, address):
    found = Visitor(browser, address)
    yield found
    assert found.outside == [] and found.wrong == []
    found.context.close()


@needs_chromium
def test_a_picture_and_words_give_the_answer_of_the_api_and_its_files(visitor, place, tmp_path):
    visitor.show(place / "a.png")
    visitor.ask(WORDS)
    legend = visitor.legend()
    assert legend and set(legend) <= {c.split(",")[0] for c in WORDS.split("; ")}

    # A click on a name's place chooses its segment and shows the five best names.
    box = visitor.tab.locator(".mc-name").first.bounding_box()
    visitor.tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    card = visitor.tab.locator(".mc-card")
    card.wait_for()
    best = dict(zip(card.locator(".mc-best-name").all_inner_texts(),
                    map(float, card.locator(".mc-number").all_inner_texts())))
    assert len(best) == 4 and list(best.values()) == sorted(best.values(), reverse=True)
    assert next(iter(best)) == card.locator("strong").inner_text()
    for tab, rows in (("Semantic map", ".mc-legend-name"), ("Instances", ".mc-legend-name"),
                      ("Table", "tbody tr")):
        visitor.tab.get_by_role("tab", name=tab).click()
        assert visitor.tab.locator(rows).count() > 0
    rows = visitor.tab.locator("tbody tr").count()

    name, content = visitor.download("labels")
    assert name == "a.labels.png"
    (tmp_path / name).write_bytes(content)
    name, content = visitor.download("overlay")
    (tmp_path / name).write_bytes(content)
    assert Image.open(tmp_path / name).width > 96
    name, content = visitor.download("coco")
    coco = json.loads(content)
    assert name == "a.coco.json" and 0 < len(coco["annotations"]) <= rows
    assert coco["images"][0]["file_name"] == "a.png"
    name, content = visitor.download("code")
    assert name == "a.py"
    shutil.copy(place / "a.png", tmp_path)
    (tmp_path / name).write_bytes(content)
    done = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True,
                          env=whole_runs.environment())
    assert done.returncode == 0, done.stderr
    labels = (tmp_path / "named/picture.labels.png").read_bytes()
    assert labels == (tmp_path / "a.labels.png").read_bytes()
    of_lines = json.loads((tmp_path / "named/picture.json").read_text())["masks"]
    assert len(of_lines) == rows
    assert best in [{b["name"]: round(b["score"], 2) for b in m["best"]} for m in of_lines]


@needs_chromium
def test_masks_come_from_a_file_from_the_brush_and_from_regions(visitor, place):
    visitor.show(place / "a.png")
    visitor.choose_masks("regions of like colour")
    visitor.ask(WORDS)
    picture = np.asarray(Image.open(place / "a.png"))
    assert len(visitor.legend()) == mc.superpixels(picture).max()
    visitor.choose_masks("from a file")
    visitor.give("masks_file", place / "a.masks.png")
    visitor.tab.get_by_text("a.masks").first.wait_for(timeout=LONG)
    visitor.ask()
    numbers = np.unique(np.asarray(Image.open(place / "a.masks.png")))
    assert len(visitor.legend()) == len(numbers)

    visitor.choose_masks("drawn")
    canvas = visitor.tab.locator("#editor canvas").first
    canvas.wait_for(timeout=LONG)
    visitor.tab.wait_for_timeout(500)  # the editor fits the picture
    box = canvas.bounding_box()
    mouse = visitor.tab.mouse
    mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.5 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    mouse.up()
    visitor.tab.wait_for_timeout(500)
    visitor.ask()
    assert len(visitor.legend()) == 1
    _, lines = visitor.download("code")
    assert b"'counts'" in lines and b"masks, 'red one; green two" in lines


@needs_chromium
@pytest.mark.parametrize("file, says", [
    ("drawing.svg", "drawing.svg is a drawing (SVG), wanted a photograph; save it as PNG"),
    ("paper.jpg", "paper.jpg is a PDF document; save the page as PNG or JPEG"),
    ("phone.jpg", "phone.jpg"), ("large.jpg", "maximum allowed size"),
])
def test_files_that_are_no_picture_end_in_a_sentence(visitor, place, file, says):
    visitor.give("picture", place / file)
    if file == "large.jpg":  # the upload itself is refused
        assert says in visitor.told()
        return
    visitor.tab.locator("#picture img").first.wait_for(state="attached", timeout=LONG)
    assert says in visitor.refused(WORDS)


@needs_chromium
def test_wrong_words_and_masks_end_in_a_sentence_and_the_visit_goes_on(visitor, place):
    assert "there is no picture yet" in visitor.refused(WORDS)
    visitor.show(place / "a.png")
    assert "there are no words" in visitor.refused(" ; ")
    assert "'cat' more than once" in visitor.refused("cat; cat")
    assert "have 100000 characters, more than the 20000" in visitor.refused("x" * 100_000)
    visitor.choose_masks("from a file")
    assert "there is no file of masks yet" in visitor.refused(WORDS)
    visitor.give("masks_file", place / "small.masks.png")
    visitor.tab.get_by_text("small.masks").first.wait_for(timeout=LONG)
    assert "small.masks.png has 40x30 pixels, the picture 96x96" in visitor.refused()
    visitor.choose_masks("found by the generator")
    visitor.tab.get_by_text("More", exact=True).click()
    visitor.give("names_file", place / "latin.txt")
    visitor.tab.get_by_text("latin").first.wait_for(timeout=LONG)
    said = visitor.refused()
    assert "latin.txt, line 1" in said and "save the file as UTF-8" in said and "/" not in said
    visitor.tab.locator("#names_file button[aria-label*=Remove], #names_file "
                        "button[aria-label*=Clear]").first.click()
    # A word that looks like HTML is a word.
    visitor.ask("<img src=x onerror=alert(1)>; green two")
    assert set(visitor.legend()) <= {"<img src=x onerror=alert(1)>", "green two"}
    assert visitor.tab.locator("#viewer img[src=x]").count() == 0
    assert "never seen" in visitor.tab.locator(".mc-notes").inner_text()


@needs_chromium
def test_two_visitors_get_answers_of_their_own(browser, address, place, visitor):
    other = Visitor(browser, address)
    visitor.show(place / "a.png")
    other.show(place / "b.png")
    visitor.press("green two; brown brick")
    other.press("white nine; pink brick")
    for one in (visitor, other):
        one.tab.locator(".mc-legend button").first.wait_for(timeout=LONG)
    assert set(visitor.legend()) <= {"green two", "brown brick"}
    assert set(other.legend()) <= {"white nine", "pink brick"}
    assert other.download("code")[0] == "b.py" and visitor.download("code")[0] == "a.py"
    other.context.close()


@needs_chromium
def test_a_vocabulary_is_found_by_typing(visitor, place):
    visitor.show(place / "a.png")
    field = visitor.tab.locator("#vocabulary input")
    field.click()
    field.press_sequentially("scenes_s")
    visitor.tab.get_by_role("option").first.click()
    visitor.tab.locator(".mc-legend button").first.wait_for(timeout=LONG)
    _, lines = visitor.download("code")
    assert b"mc.Vocabulary.shipped('scenes_seen')" in lines
    assert visitor.tab.locator("#words textarea").is_disabled()


@needs_chromium
def test_a_phone_needs_no_sideways_scrolling_and_sees_the_answer(browser, address, place):
    phone = Visitor(browser, address, color_scheme="dark")
    phone.tab.set_viewport_size(dict(width=390, height=844))
    phone.show(place / "a.png")
    phone.ask(WORDS)
    phone.tab.wait_for_function("document.querySelector('.mc-stage').getBoundingClientRect().top"
                                " < window.innerHeight", timeout=LONG)
    assert phone.tab.evaluate("document.documentElement.scrollWidth") <= 390
    dark = phone.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 80
    phone.context.close()


@needs_chromium
def test_files_of_the_server_cannot_be_read(address, place, visitor):
    visitor.show(place / "a.png")
    for path in ("/etc/passwd", "../../etc/passwd", mc.__file__, str(place / "a.png"),
                 "http://127.0.0.1:1/"):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(address + route + urllib.request.quote(path))
            assert refused.value.code in (400, 403, 404, 405, 500), path
            assert b"root:" not in refused.value.read()
    # Nor as the picture of a question that no browser would ask.
    config = json.loads(urllib.request.urlopen(address + "config").read())
    number = next(d["id"] for d in config["dependencies"] if len(d["inputs"]) > 8)
    shutil.copy(place / "a.png", place / "secret.png")
    for path in ("/etc/passwd", str(place / "secret.png"), "http://127.0.0.1:1/secret.png"):
        picture = dict(path=path, orig_name="a.png", meta={"_type": "gradio.FileData"})
        data = [picture, WORDS, "", None, "regions", None, None, "", 0, None]
        events = ask_directly(address, number, data)
        assert '"success":false' in events.replace(" ", "") and "cannot be read" not in events
        assert "not uploaded here" in events or not path.startswith("http"), events
    kept = [f.name for f in pathlib.Path(tempfile.gettempdir()).glob("maskclippp_page_*/*/*")]
    assert "a.png" in kept and not {"passwd", "secret.png"} & set(kept)


def test_a_request_that_is_too_long_is_refused(address):
    with pytest.raises((urllib.error.HTTPError, urllib.error.URLError)) as refused:
        post(address + "gradio_api/queue/join", dict(data=["x" * 9 * 2**20]))
    assert getattr(refused.value, "code", 413) == 413


def ask_directly(address, number, data):
    """What the server says to a question, as its stream of events has it."""
    post(address + "gradio_api/queue/join",
         dict(data=data, fn_index=number, session_hash="direct", event_data=None, trigger_id=None))
    found, stream = "", urllib.request.urlopen(
        address + "gradio_api/queue/data?session_hash=direct", timeout=60)
    for line in stream:
        found += line.decode()
        if "process_completed" in found and found.endswith("\n\n"):
            return found
    return found


def post(url, content):
    request = urllib.request.Request(url, json.dumps(content).encode(),
                                     {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=60).read()


def serve(*flags):
    return whole_runs.command(None, "serve", *flags)


def test_the_command_says_what_is_missing():
    done = serve("--config=quickstart")
    assert done.returncode == 2 and "got no --checkpoint" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve("--checkpoint=untuned", "--config=quickstart", f"--port={port}")
    assert done.returncode == 2 and f"--port={port + 1}" in done.stderr, done.stderr
    done = serve("--checkpoint=untuned", "--config=quickstart", "--host=no.such.host.invalid")
    assert done.returncode == 2 and "there is no host no.such.host.invalid" in done.stderr


def test_without_gradio_the_command_tells_how_to_get_it():
    program = ("import sys; sys.modules['gradio'] = None\n"
               "sys.argv = ['maskclippp', 'serve', '--checkpoint=untuned', '--config=quickstart']\n"
               "from maskclippp_jax.__main__ import main; sys.exit(main())")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          cwd=whole_runs.ROOT)
    assert done.returncode == 2 and "pip install 'maskclippp_jax[app]'" in done.stderr
