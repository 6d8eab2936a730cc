"""Evaluations that run a generator: the same as with the bundle that it exports; what is refused.

Model, pictures and data sets are those of test_evaluate.
"""

import json

import numpy as np
import pytest

from maskclippp_jax.data import bundle_writer, images, transforms
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.evaluation import augmented, comparison, protocol
from maskclippp_jax.evaluation.comparison import Options
from maskclippp_jax.evaluation.truth import open_truth
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.naming import generated, segmenter
from maskclippp_jax.runtime import storage
from maskclippp_jax.vocabulary import Vocabulary
from tests import tiny_eomt, tiny_generators
from tests.compilations import compilations
from tests.evaluation.test_evaluate import (  # noqa: F401, fixtures
    NAMES,
    SETS,
    command,
    config,
    evaluate,
    mesh,
    place,
)


@pytest.fixture(scope="module")
def one_device(mesh):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison.sharding, "make_mesh", lambda fsdp: mesh)
        yield


@pytest.fixture(scope="module")
def eomt(place):  # noqa: F811
    # A class of the vocabulary, two that share a name with others, and one that nobody else has.
    return str(tiny_eomt.write_folder(place / "eomt", id2label={
        "0": "red one", "1": "blue three, grey grass", "2": "elsewhere"}))


@pytest.fixture(scope="module")
def run(place, config, one_device):  # noqa: F811
    """`run(name, bundle, options)`: results, protocol and folder of predictions."""
    def run(name, bundle=None, oracle=None, checkpoints=("untuned",), config=config, **options):
        workdir = storage.path(place / f"of_{name}")
        comparison.compare(config, checkpoints, bundle and str(bundle), workdir, Options(
            oracle, save_predictions=None if oracle else str(place / f"found_{name}"), **options))
        found = json.loads((workdir / "results.json").read_text())
        model, = found["models"]
        return {k: v for k, v in model.items() if k != "images_per_second"}, found["protocol"]

    return run


def files_of(folder):
    """All but the one with the protocol, which tells where masks came from."""
    return {f.relative_to(folder): f.read_bytes() for f in sorted(folder.rglob("*"))
            if f.is_file() and f.name != "predictions.json"}


def test_a_generator_gives_what_the_bundle_that_it_exports_gives(
        place, config, eomt, run, monkeypatch):  # noqa: F811
    """To the last bit of every prediction with logits of float32, and nearly with float16."""
    truth = open_truth(config.data_dir, SETS, "validation")
    for dtype in ("float32", "float16"):
        made, = generated.open_generator(eomt, truth.records, augmented.PLAIN, config.eval)
        generated.export(made, place / dtype, float32=dtype == "float32")
    results, said = run("generator", generator=eomt)
    with compilations() as compiled:
        stored, of_stored = run("float32", place / "float32")
    assert not {"scores_of", "look"} & set(compiled)  # the same programs, the same shapes
    assert results == stored
    one, other = (files_of(place / f"found_{name}") for name in ("generator", "float32"))
    assert one == other and len(one) > 4
    differing = {k for k in said if said[k] != of_stored[k]}
    assert differing == {"masks"} and said["masks"] == f"of {eomt}, made for each picture"
    assert said["generator_letterbox"] == 64 and said["ensemble"] == "alpha 0.3, beta 0.3"
    assert said["ensemble_classes"].startswith("2 of the generator's 3 name a class here")
    assert results["semantic"]["mIoU"] > 0 and results["panoptic"]["all"]["PQ"] is not None

    # The program makes the same of float16, another one; that one is not compiled here.
    read = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda bundle, name: (
        found := read(bundle, name))._replace(masks=found.masks.astype(np.float32)))
    half, said = run("float16", place / "float16")
    assert said["stored_masks"] == "logits"
    maps = [[images.read_label_map(str(f)) for f in sorted((place / f"found_{name}").rglob("*.png"))
             if "semantic" in str(f)] for name in ("generator", "float16")]
    same = np.mean([(a == b).mean() for a, b in zip(*maps, strict=True)])
    assert len(maps[0]) == len(NAMES) and same > 0.999
    assert half["semantic"]["mIoU"] == pytest.approx(results["semantic"]["mIoU"], abs=0.1)


def test_perfect_classes_need_no_model_and_no_bundle(place, eomt, run):  # noqa: F811
    """After the one above, whose bundle it reads."""
    made, said = run("oracle", oracle="classes", checkpoints=(), generator=eomt)
    stored, _ = run("oracle_stored", place / "float32", oracle="classes", checkpoints=())
    assert made == stored and made["mask_recall"]["segments"] == 20
    assert made["mask_recall"]["masks_per_picture"] == tiny_eomt.CONFIG.num_queries
    assert said["recall"].startswith("of panoptic segments") and said["void"] == "none"


def test_an_open_generator_speaks_as_the_bundle_that_it_exports(
        place, config, tmp_path, monkeypatch):  # noqa: F811
    """Of the same names: the one by its own text tower, the other by that of `config.eval`."""
    monkeypatch.setattr(segmenter.loading, "load_text_tower",  # test_generator_text reads a file
                        lambda file, model: tiny_generators.text_params())
    tiny_generators.write_apart(tmp_path / "fcclip.safetensors", tmp_path / "clip.safetensors")
    truth = open_truth(config.data_dir, "three", "validation")
    with config.copy_and_resolve_references().unlocked() as changed:
        changed.eval.generator = MaskCLIPppConfig(
            tiny_generators.FCCLIP.image, tiny_generators.TEXT, None)
        changed.eval.generator_weights = str(tmp_path / "clip.safetensors")
    settings, words = changed.eval, Vocabulary.from_string("cat;dog,puppy;wall")
    made, = generated.open_generator(str(tmp_path / "fcclip.safetensors"), truth.records,
                                     augmented.PLAIN, settings)
    assert made.preparation == (settings.loader_min, settings.loader_max, settings.mask_short_side,
                                32, None)
    writer = bundle_writer.Writer(
        tmp_path / "b", masks="logits", classes=made.classes, generator=made.generator,
        preparation=made.preparation.facts())
    writer.finish()
    one, other = (segmenter.opinion_in(settings, words, np.array([True, False, False]), bundle, 64)
                  for bundle in (made, Bundle(tmp_path / "b")))
    assert one.embeddings.shape == (64, 16) and one.embeddings[:4].any(1).all()
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    said = protocol.describe(changed, truth, [made])
    assert said["generator_text"] == "of its own CLIP" and said["generator_loader"] == "32/100"


def test_versions_of_pictures_are_looked_at_one_by_one(place, config, eomt):  # noqa: F811
    """What `name_versions` reads is what a generator makes of the mirrored and resized pictures."""
    truth = open_truth(config.data_dir, "three", "validation")
    versions = transforms.versions_of((24,), flip=True)
    folders = augmented.folders_of(str(place / "several"), versions)
    for made, folder in zip(generated.open_generator(eomt, truth.records, versions, config.eval),
                            folders.values(), strict=True):
        generated.export(made, folder, float32=True)
    found = augmented.open_bundles(str(place / "several"), versions)
    assert [b.version for b in found] == versions
    assert (found[0].read("a").masks != found[1].read("a").masks).any()
    with pytest.raises(FileExistsError, match="holds a finished bundle"):
        augmented.folders_of(str(place / "several"), versions)


@pytest.mark.parametrize("options, says", [
    (dict(bundle="b"), "got --bundle and --generator, which are two sources of masks; give one"),
    (dict(allow_missing=True), "--allow_missing is for a --bundle"),
    (dict(oracle="masks"), "give no --bundle and no --generator"),
    (dict(oracle="classes"), "give --bundle or --generator, and no --checkpoint"),
    (dict(checkpoints=()), "got no --checkpoint"),
    (dict(generator="eomt-l-64"), "no published generator of this name; did you mean eomt-l-640")])
def test_what_does_not_fit_together_is_refused(place, eomt, run, options, says):  # noqa: F811
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        run("refused", **(dict(generator=eomt) | options))
    assert not (place / "of_refused").exists()


def test_classes_that_nobody_shares_have_no_say_and_their_void_counts(
        place, config, run, monkeypatch):  # noqa: F811
    other = str(tiny_eomt.write_folder(place / "other", id2label={
        "0": "one thing", "1": "two things", "2": "three things"}))
    with pytest.raises(ValueError, match="none of the 3 classes .* without an ensemble .*=False"):
        run("other", generator=other)
    with config.copy_and_resolve_references().unlocked() as alone:
        alone.eval.ensemble, alone.eval.dataset = False, "three"
        alone.eval.objectness = 0.5

    def stop(*args, **kw):
        raise StopAsyncIteration("all is ready")

    monkeypatch.setattr(segmenter, "make_segmenter", stop)
    with pytest.raises(StopAsyncIteration, match="all is ready"):
        run("alone", generator=other, config=alone)
    truth = open_truth(config.data_dir, "three", "validation")
    made = generated.open_generator(other, truth.records, augmented.PLAIN, alone.eval)
    said = protocol.describe(alone, truth, made)
    assert said["ensemble"] == "off" and "ensemble_classes" not in said
    assert said["void"] == "of the generator, less 0.5 of it times our largest class probability"


def test_the_commands_export_and_evaluate(place, eomt):  # noqa: F811
    done = command(place, "masks", "export", "--config=tiny.py", "--config.data_dir=data",
                   f"--generator={eomt}", "--output=exported", "--dtype=float32")
    assert done.returncode == 0, done.stderr
    assert "wrote exported, 4 pictures" in done.stderr
    done = evaluate(place, "--oracle=classes", f"--generator={eomt}", "--workdir=cli",
                    "--samples=20")
    assert done.returncode == 0, done.stderr
    assert "recall of true segments" in done.stdout and "seen classes" in done.stdout
    done = command(place, "masks", "export", "--config=tiny.py", "--dataset=three",
                   f"--generator={eomt}", "--output=exported")
    assert done.returncode == 2 and "give --config.eval.dataset" in done.stderr


def test_an_evaluation_goes_on_with_the_same_texts_and_records_only(
        place, config, one_device, monkeypatch):  # noqa: F811
    workdir = place / "stopped"
    (workdir / "report.html").parent.mkdir()
    for name in ("results.json", "extremes-3.png", "comparison.png", "report.html"):
        (workdir / name).write_bytes(b"of another evaluation")  # and damaged
    monkeypatch.setattr(comparison.tables, "report", None)  # fails once all is counted
    evaluate = lambda config: comparison.compare(
        config, ["untuned"], None, storage.path(workdir), Options())
    with pytest.raises(AttributeError):
        evaluate(config)
    other = config.copy_and_resolve_references().unlock()
    other.templates = ("a bad {}.",)
    with pytest.raises(ValueError, match="an unfinished evaluation with texts_of_templates"):
        evaluate(other.lock())
    with monkeypatch.context() as patch:
        patch.setattr(protocol.records, "fingerprint", lambda *args: "prepared anew")
        with pytest.raises(ValueError, match="an unfinished evaluation with records"):
            evaluate(config)
    with monkeypatch.context() as patch:
        patch.setattr(comparison.parameters, "digest", lambda weights: "tuned anew")
        with pytest.raises(ValueError, match="an unfinished evaluation with weights"):
            evaluate(config)
    monkeypatch.undo()
    evaluate(config)
    assert {f.name for f in workdir.iterdir()} == {
        "results.json", "results.md", "per_class.csv", "confusions.csv"}
    model, = json.loads((workdir / "results.json").read_text())["models"]
    assert len(model["weights"]) == 16
