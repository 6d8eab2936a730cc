"""The published rows, and the suite that runs those with data."""

import json
import types

import ml_collections
import pytest
from absl import flags
from absl.testing import flagsaver

from maskclippp_jax import config as configuration
from maskclippp_jax.data import records
from maskclippp_jax.data.catalogue import DATASETS
from maskclippp_jax.evaluation import comparison, suite
from maskclippp_jax.vocabulary import Vocabulary
from maskclippp_jax.weights import catalogue as published_files


@pytest.mark.parametrize("name", suite.rows_of())
def test_every_row_is_a_configuration_that_can_be_used(name):
    module = suite.rows_of([name])[name]
    for benchmark, numbers in module.PUBLISHED.items():
        config = configuration.check(module.get_config(benchmark), workdir="x")
        for dataset in config.eval.dataset.split(","):
            assert config.eval.split in DATASETS[dataset].published
        Vocabulary.shipped(config.eval.seen_vocabulary)
        assert config.eval.ensemble == (config.eval.alpha < 1)
        assert ("AP" in numbers) == ("_instance" in config.eval.dataset)
        if module.MASKS:
            assert config.eval.generator.text.embed_dim == {"b": 640, "l": 768}[
                module.MASKS.split("_")[1]]
    with pytest.raises(ValueError, match="has no benchmark 'x'"):
        module.get_config("x")


def test_the_rows_have_all_published_numbers():
    """Counted in the tables of the paper."""
    metrics = [metric for module in suite.rows_of().values()
               for numbers in [*module.PUBLISHED.values(), *getattr(module, "DOMAINS", {}).values()]
               for metric in numbers]
    assert {m: metrics.count(m) for m in set(metrics)} == dict(
        mIoU=15 + 7, PQ=2 + 7, SQ=2, RQ=2, AP=1 + 7, mMaskAcc=2 * 11)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two rows; there are data of one benchmark, one bundle, and one checkpoint."""
    def get_config(arg):
        return ml_collections.ConfigDict(dict(
            data_dir="", weights="hf://some/where/clip.pt", eval=dict(dataset=arg))).lock()

    rows = dict(
        first=types.SimpleNamespace(MODEL="tuned", MASKS="sam", get_config=get_config, PUBLISHED={
            "one": dict(mIoU=50.0, PQ=20.0), "two": dict(mIoU=10.0)}),
        second=types.SimpleNamespace(MODEL="untuned", MASKS=None, get_config=get_config,
                                     PUBLISHED={"one": dict(mMaskAcc=30.0)}, DOMAINS={}))
    monkeypatch.setattr(suite, "rows_of", lambda chosen=(): rows)
    folder = tmp_path / f"data/one/{records.VERSION}"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    (tmp_path / "bundles/sam/one").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tuned.pth").touch()
    return tmp_path


def run(place, evaluate):
    return suite.run(place / "out", bundles=f"{place}/bundles", checkpoints=f"{place}/models",
                     data_dir=f"{place}/data", rows=(), evaluate=evaluate)


def test_what_has_data_is_run_once_and_compared(place, capsys):
    calls = []

    def evaluate(config, found, workdir):
        calls.append((config.eval.dataset, *found))
        model = dict(semantic=dict(mIoU=49.0), panoptic=dict(all=dict(PQ=None)))
        workdir.mkdir(parents=True)
        (workdir / "results.json").write_text(json.dumps(dict(models=[model])))
        return [model]

    lines = run(place, evaluate)
    assert calls == [("one", f"{place}/models/tuned.pth", f"{place}/bundles/sam/one", None)]
    assert [(x.benchmark, x.metric, x.ours) for x in lines] == [
        ("one", "mIoU", 49.0), ("one", "PQ", None), ("two", "mIoU", None),
        ("one", "mMaskAcc", None)]
    said = capsys.readouterr().out
    assert "-1.0" in said and f"no data set {place}/data/two" in said.replace("\n", "")
    assert f"no file {place}/models/clip.pt" in said.replace("\n", "")
    assert "| first | one | mIoU | 49.0 | 50.0 | -1.0 |" in (place / "out/published.md").read_text()
    assert run(place, None) == lines  # its results are there
    (place / "models/clip.pt").touch()
    answer = lambda config, *_: [dict(mask_accuracy=dict(mMaskAcc=31.0))]
    assert run(place, answer)[-1].ours == 31.0


def test_nothing_to_run_is_an_error_that_says_what_is_looked_for(place):
    (place / "models/tuned.pth").unlink()
    with pytest.raises(ValueError, match="the first lacks checkpoint .*/models/tuned"):
        run(place, None)
    assert not (place / "out").exists()


def test_without_a_bundle_the_generator_makes_the_masks_and_files_of_the_authors_serve(
        place, monkeypatch):
    row = suite.rows_of()["first"]
    row.MODEL, row.MASKS = "coco_stuff_eva02_l14_336", "maftp_l"
    calls = []

    def answer(config, found, workdir):
        workdir.mkdir(parents=True)
        calls.append(found)
        return [dict(semantic=dict(mIoU=49.0), panoptic=dict(all=dict(PQ=None)))]

    with pytest.raises(ValueError, match="bundles/maftp_l/one and no file of maftp-l"):
        run(place, answer)
    (place / "weights").mkdir()
    monkeypatch.chdir(place)
    for name in ("maftp-l", "maskclippp-l"):
        with pytest.raises(ValueError, match=f"no file of {name}"):
            run(place, answer)
        row_of, = (r for r in published_files.all_rows() if r.name == name)
        (place / "weights" / row_of.file).touch()
    assert run(place, answer)[0].ours == 49.0
    assert calls == [("maskclippp-l", None, "maftp-l")]


def test_a_domain_has_a_mean_if_all_of_it_was_run():
    module = suite.rows_of()["untuned_eva02_l14_336_true_masks"]
    sets = [n for n in module.PUBLISHED if n.startswith("mess_") and "medical" in DATASETS[n].title]
    found = {n: dict(mask_accuracy=dict(mMaskAcc=float(i))) for i, n in enumerate(sets)}
    lines = {x.benchmark: x for x in suite._domains("row", module, found)}
    assert len(sets) == 7 and lines["mean of medical (MESS)"].ours == 3.0
    assert "mess_dark_zurich" in lines["mean of general (MESS)"].note
    del found[sets[0]]
    assert {x.benchmark: x for x in suite._domains("row", module, found)}[
        "mean of medical (MESS)"].ours is None


def test_the_command_gives_a_suite_the_results_of_its_models(place, tmp_path, monkeypatch):
    from maskclippp_jax.commands import evaluate

    calls = []

    def compare(config, names, bundle, workdir, options):
        workdir.mkdir(parents=True)
        calls.append((config.eval.dataset, names, bundle, options.generator, options.samples))
        return [dict(name="x", semantic=dict(mIoU=40.0), panoptic=dict(all=dict(PQ=21.0)))]

    monkeypatch.setattr(comparison, "compare", compare)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(
            suite="published", workdir=str(tmp_path / "results"), data_dir=str(tmp_path / "data"),
            bundles=str(tmp_path / "bundles"), checkpoints=str(tmp_path / "models"), samples=7):
        evaluate.evaluate()
    assert calls == [("one", [str(tmp_path / "models/tuned.pth")],
                      str(tmp_path / "bundles/sam/one"), None, 7)]
    lines = json.loads((tmp_path / "results/published.json").read_text())
    assert {(x["metric"], x["ours"]) for x in lines if x["ours"]} == {("mIoU", 40.0), ("PQ", 21.0)}
