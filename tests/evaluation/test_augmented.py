"""Test-time augmentation: one version changes nothing, several are averaged, each has own masks.

Model, pictures and data sets are those of test_evaluate.
"""

import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import config as configuration
from maskclippp_jax.data import build, coco_files, images, records
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.data.mask_chain import MaskSizes
from maskclippp_jax.data.transforms import Version, versions_of
from maskclippp_jax.evaluation import augmented, passes
from maskclippp_jax.evaluation.truth import IGNORE, open_truth
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.naming import inference, segmenter
from tests.evaluation.test_evaluate import (  # noqa: F401, fixtures
    NAMES,
    SIZES,
    VOCABULARY,
    config,
    evaluate,
    literal_scores,
    make_record,
    mesh,
    model,
    place,
    write_generated,
)

VERSIONS = versions_of((24, 40), flip=True)


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Tests share what is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_segmenter", "make_averaging_segmenter"):
            patch.setattr(segmenter, name, functools.lru_cache(getattr(segmenter, name)))
        yield


@pytest.fixture(scope="module")
def versions(place):  # noqa: F811
    """Bundles of four versions, and of a fifth that nobody asks for."""
    for number, version in enumerate([*VERSIONS, Version(None, True)]):
        write_generated(place / f"versions/{number}", kind="open", version=version)
    return place / "versions"


def make_mirrored(number):
    record, = make_record("semantic", number)
    image = images.decode_image(record["image"], "x")[:, ::-1]
    label = records.decode_classes(record, 255)[:, ::-1]
    return [records.semantic_record(images.encode_png(np.ascontiguousarray(image)), NAMES[number],
                                    label, VOCABULARY.is_thing)]


@pytest.fixture(scope="module")
def name(config, model, mesh):  # noqa: F811
    """`name(way, data set, *args)`: label maps of its pictures by id."""
    build.build(config.data_dir, "mirrored", VOCABULARY, "semantic",
                build.Reading(dict(validation=[0, 1, 2, 3]), make_mirrored), description="test",
                own_names=True)

    def run(way, dataset, *args, chosen=range(4), config=config):
        truth = open_truth(config.data_dir, dataset, "validation")
        with jax.set_mesh(mesh):
            if way == "versions":
                pictures = passes.name_versions(config, model, truth, mesh, chosen, *args)
            elif args:
                pictures = passes.name_bundle(config, model, truth, ["semantic"], mesh, chosen,
                                              *args)
            else:
                pictures = passes.name_true_masks(config, model, truth, ["semantic"], mesh, chosen)
            return {p.image_id: p.found.labels for p in pictures}

    return run


def assert_same(got, wanted):
    assert set(got) == set(wanted) and len(got) > 2
    for image_id, labels in got.items():
        np.testing.assert_array_equal(labels, wanted[image_id])
    assert len({c for labels in got.values() for c in np.unique(labels)}) > 2


@pytest.mark.parametrize("masks", [["open"], []])
def test_one_version_alone_is_a_plain_evaluation(tmp_path, place, config, name,  # noqa: F811
                                                 masks):
    """As loaded: of the data set; mirrored: of the mirrored data set, with the masks as they are.

    Without a loader's resize, which rounds mirrored pictures in other places.
    """
    with config.copy_and_resolve_references().unlocked() as changed:
        changed.eval.loader_min = None
    bundles, flipped = [Bundle(place / m) for m in masks], []
    if masks:
        shutil.copytree(place / "open", tmp_path / "b")
        manifest = json.loads((tmp_path / "b/manifest.json").read_text())
        manifest["augmentation"] = dict(short_side=None, flipped=True)
        (tmp_path / "b/manifest.json").write_text(json.dumps(manifest))
        flipped = [Bundle(tmp_path / "b")]
    name = functools.partial(name, chosen=[0, 2, 3], config=changed)  # of one canvas
    straight = name("versions", "three", [Version()], bundles)
    assert_same(straight, name("plain", "three", *bundles))
    found = name("versions", "three", [Version(None, True)], flipped)
    wanted = name("plain", "mirrored", *bundles)
    assert_same(found, {k: v[:, ::-1] for k, v in wanted.items()})
    assert any((found[k] != straight[k]).any() for k in found)


def test_several_versions_equal_the_mean_of_full_maps(versions, config, model, name,  # noqa: F811
                                                      caplog):
    bundles = augmented.open_bundles(str(versions), VERSIONS)
    assert [b.version for b in bundles] == VERSIONS
    with jax.log_compiles():
        found = name("versions", "three", VERSIONS, bundles, chosen=[0, 2, 3])  # of one canvas
    started = re.findall(r"Compiling jit\((scores_of|average)\)", caplog.text)
    assert started.count("average") == 1 and started.count("scores_of") <= 1
    names = inference.embed_vocabulary(config, model.config, model.params, VOCABULARY)
    for number in (0, 2):
        maps = [literal_scores(model, names, b.read(NAMES[number]), number, b.version)
                for b in bundles]
        mean = np.mean([m[..., ::-1] if v.flipped else m for m, v in zip(maps, VERSIONS)], 0)
        second, first = np.sort(mean, 0)[-2:]
        clear = first - second > 1e-4
        labels = found[NAMES[number]]
        assert labels.shape == SIZES[number] and clear.mean() > 0.5
        np.testing.assert_array_equal(labels[clear], mean.argmax(0)[clear])
        assert len(np.unique(labels)) > 1 and (labels != maps[0].argmax(0)).mean() > 0.1
    assert not found["e"].any()  # no version has masks
    rest = name("versions", "three", VERSIONS, bundles, chosen=[2])  # after a stop
    assert list(rest) == [NAMES[2]]
    np.testing.assert_array_equal(rest[NAMES[2]], found[NAMES[2]])


def test_memory_does_not_grow_with_the_map_of_all_classes():
    """Four versions, 1000 classes, a picture of 256 x 512: half a GB as a map."""
    pair = jax.ShapeDtypeStruct((4, 2), np.int32)
    like = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    compiled = jax.jit(functools.partial(
        segmenter.postprocess.augmented_labels, canvas=(256, 512))).lower(
            like(4, 16, 64, 128), MaskSizes(pair, pair, pair), like(4, dtype=bool),
            like(4, 16, 1024), 1000, like(2, dtype=jnp.int32)).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 1e8


def test_masks_that_are_not_of_the_versions_wanted_are_refused(tmp_path, versions):
    opened = lambda folder, wanted: augmented.open_bundles(str(folder), wanted)
    with pytest.raises(ValueError, match=r"has masks of the versions short side 24, short side 24 "
                       r"mirrored, .*, but not of short side 48, short side 48 mirrored; export"):
        opened(versions, versions_of((24, 48), flip=True))
    with pytest.raises(ValueError, match="of the version short side 24 mirrored, but not of as "
                       "loaded; export"):
        opened(versions / "1", augmented.PLAIN)
    with pytest.raises(FileNotFoundError, match="no bundle in"):
        opened(tmp_path, VERSIONS)
    shutil.copytree(versions / "0", tmp_path / "0")
    shutil.copytree(versions / "0", tmp_path / "again")
    with pytest.raises(ValueError, match="0 and .*again are both of the version short side 24; "):
        opened(tmp_path, VERSIONS[:1])
    shutil.rmtree(tmp_path / "again")
    shutil.copytree(versions / "1", tmp_path / "1")
    assert len(opened(tmp_path, VERSIONS[:2])) == 2
    file = tmp_path / "1/manifest.json"
    good = json.loads(file.read_text())
    file.write_text(json.dumps(good | dict(generator=dict(name="other"))))
    with pytest.raises(ValueError, match="differ in their generator .*'random'.* and .*'other'"):
        opened(tmp_path, VERSIONS[:2])
    file.write_text(json.dumps(good | dict(augmentation=dict(short_side="24", flipped=True))))
    with pytest.raises(ValueError, match="at augmentation.short_side: got str, wanted int"):
        opened(tmp_path, VERSIONS[:2])
    file.write_text(json.dumps(good | dict(augmentation=dict(short_side=40, flipped=True))))
    with pytest.raises(ValueError, match="with the loaded size .24, 34., but"):
        opened(tmp_path, VERSIONS[:2])
    file.unlink()
    with pytest.raises(FileNotFoundError, match="1 is not finished"):
        opened(tmp_path, VERSIONS[:2])


@pytest.mark.parametrize("sides", [(400, 400), (0,), ("400,x",), (40.5,)])
def test_short_sides_that_are_no_sizes_are_refused(config, sides):  # noqa: F811
    with config.copy_and_resolve_references().unlocked() as changed:
        changed.eval.short_sides = sides
    with pytest.raises(ValueError, match=f"eval.short_sides is {sides[0]}.*400,500,600"):
        configuration.check(changed, workdir="x")


@pytest.mark.slow
def test_the_command_averages_over_versions_and_says_so(place, versions):  # noqa: F811
    both = ["--config.eval.dataset=three", "--config.eval.flip=True", "--checkpoint=untuned",
            "--samples=0"]
    done = evaluate(place, *both, "--config.eval.short_sides=24,40", f"--bundle={versions}",
                    "--workdir=averaged", "--save_predictions=kept")
    assert done.returncode == 0, done.stderr
    results = json.loads((place / "averaged/results.json").read_text())
    line = ("mean over 4: short side 24, short side 24 mirrored, short side 40, short side 40 "
            "mirrored")
    assert results["protocol"]["versions"] == line and f"versions: {line}" in done.stdout
    assert results["protocol"]["masks"] == str(versions)
    result, = results["models"]
    assert {"semantic", "boundary"} <= set(result) and "mask_accuracy" not in result
    metric, truth = SemanticSegmentation(VOCABULARY.num_classes, IGNORE), open_truth(
        str(place / "data"), "three", "validation")
    for image_id in NAMES:
        file, = (place / "kept").rglob(coco_files.file_of(image_id, ".png"))
        metric.process(images.read_label_map(str(file)), truth.semantic(image_id))
    assert metric.evaluate()["IoU"] == result["semantic"]["IoU"]

    done = evaluate(place, *both, "--workdir=true_masks")
    assert done.returncode == 0, done.stderr
    results = json.loads((place / "true_masks/results.json").read_text())
    assert results["protocol"]["versions"] == "mean over 2: as loaded, as loaded mirrored"
    result, = results["models"]
    assert result["semantic"]["classes_in_ground_truth"] == 5 and "mask_accuracy" not in result

    done = evaluate(place, "--config.eval.flip=True", "--checkpoint=untuned", "--workdir=bad")
    assert done.returncode == 2 and done.stderr.count("error") == 1
    assert "has more than label maps, and only their scores can be averaged" in done.stderr
    assert not (place / "bad").exists()
