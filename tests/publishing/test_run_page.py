"""The page of a run: one file, that needs nothing and tells all."""

import html.parser
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from maskclippp_jax.drawing import report
from maskclippp_jax.evaluation import tables
from maskclippp_jax.publishing import run_page
from maskclippp_jax.runtime import storage
from maskclippp_jax.vocabulary import Vocabulary
from tests import stored

HOSTILE = "<script>alert(1)</script>&\"'"
VOID = ("meta", "img")


class Tree(html.parser.HTMLParser):
    """Sees that all elements are closed, and keeps words and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.attributes, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(folder):
    """The page's text and tree, after what holds for all."""
    text = run_page.page(storage.path(folder))
    tree = Tree(text)
    # Nothing is fetched, nothing runs.
    assert not re.search(r"https?://|url\(|@import|javascript:", text)
    assert not {"script", "link", "iframe", "object"} & set(tree.tags)
    for name, value in tree.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith(("data:image/webp;base64,", "#s"))
    assert "color-scheme: light dark" in text and "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    return text, tree


@pytest.fixture
def run(tmp_path):
    with zipfile.ZipFile(stored.FILE) as archive:
        archive.extractall(tmp_path, [f for f in archive.namelist() if f.startswith("run/")])
    return tmp_path / "run"


def write_evaluation(folder, name="a model"):
    """Results of two models on three classes, written as `evaluate` does."""
    folder.mkdir(exist_ok=True)
    vocabulary = Vocabulary(HOSTILE, ((HOSTILE, "x"), ("dog",), ("grass",)), (True, True, False),
                            (0, 1, 2))
    confused = [dict(true=0, predicted=1, count=4, percent=40.0)]
    models = [dict(
        name=title, checkpoint=HOSTILE, mask_accuracy=dict(
            mMaskAcc=value, seen=value, unseen=None, micro=value, masks=9, classes=3,
            per_class=[value, None, 10.0], confusions=confused,
            intervals=dict(mMaskAcc=[value - 5, value + 5])))
        for title, value in (("untuned", 30.0), (name, 60.0))]

    class Truth:
        pass

    Truth.vocabulary = vocabulary
    report.write_json(folder / "results.json", dict(
        protocol=dict(dataset=HOSTILE, pictures=7, masks="ground truth"), models=models))
    storage.write(folder / "per_class.csv", tables.per_class(
        models, Truth, np.array([True, True, False])))
    storage.write(folder / "confusions.csv", tables.confusions(models, vocabulary))
    for file in ("comparison.png", "extremes-1.png"):
        Image.new("RGB", (2000, 100), (200, 30, 30)).save(folder / file)
    return folder


def test_a_training_run_is_told_with_curves_time_and_configuration(run):
    text, tree = page(run)
    words = " ".join(tree.words)
    for title in ("Learning", "Time and speed", "What is tuned", "Configuration"):
        assert title in tree.words
    assert "steps of 2" in words and "1,323 of 12,388 parameters learn (10.7 %)" in words
    assert '"batch_size": 2' in words
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and f"loss {losses[-1]:.3g}" in words
    assert len(text) < 100_000


def test_an_evaluation_is_told_with_ranges_classes_confusions_and_pictures(tmp_path):
    text, tree = page(write_evaluation(tmp_path / "comparison"))
    words = " ".join(tree.words)
    for title in ("Results", "Classes", "Confusions", "Pictures", "Protocol"):
        assert title in tree.words
    assert "55.0 ... 65.0" in tree.words and "60.0" in tree.words
    assert "mask accuracy of 2 classes" in tree.words  # of the third none is known
    assert "stuff, unseen" in tree.words and "bar hatched" in text
    assert f"{HOSTILE} → dog" in tree.words
    assert "The best and the worst pictures of a model" in tree.words
    pictures = [value for name, value in tree.attributes if name == "src"]
    assert len(pictures) == 2 and ("width", "1600") in tree.attributes
    assert "percent of all masks of the true class" in words


def test_names_of_classes_models_and_data_sets_are_words_not_html(tmp_path):
    text, tree = page(write_evaluation(tmp_path / "a<b>", name=HOSTILE))
    assert HOSTILE in tree.words  # as it is written
    assert "<script" not in text and "a<b>" not in text
    assert "a<b>" in tree.words


def test_results_in_folders_of_a_run_are_on_its_page(run):
    write_evaluation(run / "evaluated")
    _, tree = page(run)
    assert "Learning" in tree.words and "Results, evaluated" in tree.words
    assert len({value for name, value in tree.attributes if name == "id"}) == tree.tags.count("h2")


def test_what_is_missing_or_cut_is_left_out(run):
    for name in ("speed.jsonl", "parameters.json", "config.json"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo\xff')
    with (run / "times.jsonl").open("ab") as file:
        file.write(bytes(100) + b"\xff")
    _, tree = page(run)
    assert "Learning" in tree.words and "Time and speed" not in tree.words
    (run / "metrics.jsonl").write_text("")
    page(run)
    folder = write_evaluation(run.parent / "old")
    for name in ("per_class.csv", "confusions.csv", "comparison.png", "extremes-1.png"):
        (folder / name).unlink()
    _, tree = page(folder)
    assert "Results" in tree.words and "Classes" not in tree.words


def test_files_that_are_no_results_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run: it has neither metrics.jsonl"):
        page(tmp_path)
    folder = write_evaluation(tmp_path / "x")
    (folder / "comparison.png").write_text("no picture")
    with pytest.raises(ValueError, match="comparison.png is no picture"):
        page(folder)
    for content in ('{"models": [1]}', '{"models": [{"name": 1}]}', "[]", "{"):
        (folder / "results.json").write_text(content)
        with pytest.raises(ValueError, match="results.json"):
            page(folder)


def test_the_command_writes_the_page_or_a_sentence(run):
    def report_of(*flags):
        return subprocess.run(
            [sys.executable, "-m", "maskclippp_jax", "report", *flags], cwd=run.parent,
            env=dict(os.environ, PYTHONPATH=str(pathlib.Path(__file__).parents[2])),
            capture_output=True, text=True)

    done = report_of("--workdir=run")
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").read_text() == run_page.page(storage.path(run))
    run_page.write(storage.path(run), storage.path(run / "new/page.html"))
    assert (run / "new/page.html").is_file()
    done = report_of("--workdir=nothing")
    assert done.returncode == 2 and "is no run" in done.stderr and "Traceback" not in done.stderr
    assert sorted(f.name for f in run.parent.iterdir()) == ["run"]
