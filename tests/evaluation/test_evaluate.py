"""Evaluation of masks: the chain beside a literal form, perfect results, stops, and bad input.

A tiny random model; three data sets of the same four pictures hold label maps, segments and
instances.
"""

import copy
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import api, metrics, params as parameters
from maskclippp_jax.data import (
    build,
    bundle_tools,
    bundle_writer,
    images,
    records,
    transforms,
)
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.data.transforms import Version
from maskclippp_jax.evaluation import passes, protocol
from maskclippp_jax.evaluation.counts import Evaluation, Extremes, Progress, picture_score
from maskclippp_jax.evaluation.truth import IGNORE, Truth, open_truth
from maskclippp_jax.models import maskclippp, resample
from maskclippp_jax.naming import inference, segmenter
from maskclippp_jax.naming.namer import Namer
from maskclippp_jax.vocabulary import Vocabulary
from tests import forked, xla_flags
from tests.compilations import compilations

ROOT = pathlib.Path(__file__).parents[2]
VOCABULARY = dataclasses.replace(Vocabulary.shipped("scenes"), name="own")
THINGS = [i for i, thing in enumerate(VOCABULARY.is_thing) if thing][:3]
STUFF = [i for i, thing in enumerate(VOCABULARY.is_thing) if not thing][:2]
NAMES = ("a", "b", "c/d", "e")
SIZES = ((40, 56), (56, 40), (40, 56), (40, 56))
SETS = "three,three_panoptic,three_instance"
CONFIG = '''
from maskclippp_jax.configs import quickstart
from maskclippp_jax.models import eva_vit, maskclippp, similarity, text
def get_config():
    config = quickstart.get_config().unlock()
    full = text.TextConfig.quickstart()
    config.model = maskclippp.MaskCLIPppConfig(
        eva_vit.EvaViTConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2,
                             mlp_width=48, embed_dim=16, mask_layers=1),
        text.TextConfig(full.context_length, full.vocab_size, 32, 1, 2, 16, words=full.words),
        similarity.LinearSimilarityConfig(1, 16))
    config.weights = "random"
    config.eval.dataset = "three,three_panoptic,three_instance"
    config.eval.batch_size = 2
    config.eval.loader_min, config.eval.loader_max = 32, 100
    config.eval.short_side, config.eval.mask_short_side = 40, 64
    return config.lock()
'''


def source_ids(number):
    """[H, W]: stuff above and below, three things, one of them small; a void stripe."""
    height, width = SIZES[number]
    ids = np.full((height, width), 1)
    ids[height // 2:] = 2
    ids[10:30, 4:20], ids[5:25, 24:36], ids[30:38, 8 + number:16] = 3, 4, 5
    ids[:, -2:] = 0
    return ids


def rows(number):
    classes = [*STUFF, THINGS[number % 3], THINGS[0], THINGS[1]]
    return [records.Segment(c, VOCABULARY.is_thing[c], source_id=i)
            for i, c in enumerate(classes, start=1)]


def make_record(kind, number):
    image = images.encode_png(np.random.default_rng(number).integers(
        0, 256, (*SIZES[number], 3)).astype(np.uint8))
    ids, segments = source_ids(number), rows(number)
    if kind == "panoptic":
        return [records.panoptic_record(image, NAMES[number], ids, segments)]
    if kind == "instance":
        things = [s for s in segments if s.is_thing]
        ids = np.where(np.isin(ids, [s.source_id for s in things]), ids, 0)
        return [records.panoptic_record(image, NAMES[number], ids, things)]
    label = np.array([255, *(s.class_id for s in segments)])[ids]
    return [records.semantic_record(image, NAMES[number], label, VOCABULARY.is_thing)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a place")
    (folder / "tiny.py").write_text(CONFIG)
    for name, kind in zip(SETS.split(","), ("semantic", "panoptic", "instance")):
        build.build(str(folder / "data"), name, VOCABULARY, kind, build.Reading(
            dict(validation=[0, 1, 2, 3]), functools.partial(make_record, kind)),
            description="test", own_names=True)
    write_generated(folder / "generated")
    write_generated(folder / "open", kind="open")
    writer = bundle_writer.Writer(folder / "perfect", masks="binary", classes=dict(kind="none"),
                                  generator=dict(name="truth"))
    for number, name in enumerate(NAMES):
        ids = source_ids(number)
        writer.add(name, np.stack([ids == i for i in range(1, 6)]), (SIZES[number],))
    writer.finish()
    return folder


def way(number, version=Version()):
    size = SIZES[number]
    loaded = transforms.version_size(transforms.shortest_edge(*size, 32, 100), version)
    resized = tuple(side * 64 // min(loaded) for side in loaded)
    return size, loaded, resized, tuple(-(-side // 32) * 32 for side in resized)


def write_generated(folder, names=NAMES, kind="closed", version=Version()):
    """Smooth random logits of 5 masks (none in picture e), with classes of one kind."""
    known = [[VOCABULARY.classes[c][0]] for c in (*STUFF, *THINGS)]
    classes = {"closed": dict(kind="closed", vocabulary=[*known, ["elsewhere"]]),
               "open": dict(kind="open", vocabulary=[list(c) for c in VOCABULARY.classes]),
               "embeddings": dict(kind="embeddings", void_embedding=[0.1] * 16, logit_scale=20.0,
                                  templates=["a photo of a {}."])}[kind]
    columns = {"closed": 7, "open": VOCABULARY.num_classes + 1, "embeddings": 16}[kind]
    writer = bundle_writer.Writer(
        folder, masks="logits", classes=classes, generator=dict(name="random"),
        preparation=dict(loader_min=32, loader_max=100, short_side=64, multiple=32),
        augmentation=version._asdict() if version != Version() else None)
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng([number, version.short_side or 0, version.flipped])
        count = 0 if name == "e" else 5
        height, width = (side // 4 for side in way(number, version)[3])
        masks = rng.normal(size=(count, 4, 4), scale=4)
        masks = masks.repeat(height // 4 + 1, 1)[:, :height].repeat(width // 4 + 1, 2)[..., :width]
        if name in names:
            writer.add(name, masks, way(number, version),
                       rng.normal(size=(count, columns), scale=2))
    writer.finish()


@pytest.fixture(scope="module")
def config(place):
    content: dict = {}
    exec(compile(CONFIG, "tiny.py", "exec"), content)
    config = content["get_config"]().unlock()
    config.data_dir = str(place / "data")
    config.eval.seen_vocabulary = "scenes_seen"
    config.eval.ensemble, config.eval.alpha, config.eval.beta = True, 0.3, 0.3
    return config


@pytest.fixture(scope="module")
def model(config):
    make = lambda: maskclippp.MaskCLIPpp(config.model, rngs=parameters.Keys(3))
    params = jax.jit(lambda: parameters.initialize(make))()
    return passes.Model(config.model, jax.device_get(params))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1],
                         axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def truth(config):
    return open_truth(config.data_dir, SETS, "validation")


PARTS = ("semantic", "panoptic", "instances")


@pytest.fixture(scope="module")
def compiled():
    """Names of the programs that were compiled for `generated`."""
    return []


@pytest.fixture(scope="module")
def generated(place, config, model, truth, mesh, compiled):
    """The pictures of a bundle of generated masks with logits of the same classes."""
    with jax.set_mesh(mesh), compilations() as names:
        segmenter.make_segmenter.cache_clear()  # another test's would be compiled already
        found = list(passes.name_bundle(config, model, truth, PARTS, mesh, range(4),
                                      Bundle(place / "open")))
    compiled += names
    return found


def test_the_protocol_names_the_commit_of_a_checkout():
    done = subprocess.run(["git", "describe", "--always", "--abbrev=12"], cwd=ROOT,
                          capture_output=True, text=True)
    wanted = (importlib.metadata.version("maskclippp_jax") if done.returncode
              else done.stdout.strip())
    assert protocol.code_version().removesuffix("-dirty") == wanted


def test_pictures_of_one_canvas_share_their_programs(generated, compiled):
    """All sides are below 64 pixels here; heights, widths and numbers of masks differ."""
    assert len(generated) == 4
    assert compiled.count("scores_of") == compiled.count("look") == 1


def test_neither_a_second_pass_nor_other_words_compile_anything(place, config, model, truth, mesh,
                                                                generated):
    """Other words are as many as fill the same table of names."""
    others = dataclasses.replace(VOCABULARY, name="others", classes=tuple(
        (f"red {names[0]}", *names[1:]) for names in VOCABULARY.classes))
    again = copy.copy(truth)
    again.vocabulary = others
    with jax.set_mesh(mesh), compilations() as names:
        for where, bundle in ((truth, Bundle(place / "open")), (again, Bundle(place / "open"))):
            bundle.vocabulary = where.vocabulary
            found = list(passes.name_bundle(config, model, where, PARTS, mesh, range(4), bundle))
            assert len(found) == 4
    assert names == []


def literal_scores(model, names, stored, number, version=Version()):
    """The chain step by step, masks at every size it names, to the map of all classes [C, H, W]."""
    size, loaded, resized, padded = way(number, version)
    image = np.random.default_rng(number).integers(0, 256, (*SIZES[number], 3)).astype(np.uint8)
    image = transforms.make_version(transforms.resize_image(image, way(number)[1]), version)
    network = tuple(side * 40 // min(loaded) for side in loaded)
    run = literal_chain(model.config, size, resized, padded, network)
    return np.asarray(run(model.params, names, image, stored.masks.astype(np.float32),
                          stored.classes))


@functools.lru_cache
def literal_chain(model_config, size, resized, padded, network):
    canvas = tuple(-(-side // 32) * 32 for side in network)
    resize = lambda x, to: jax.image.resize(x, (*x.shape[:-2], *to), "linear", antialias=False)

    @jax.jit
    def run(params, names, image, logits, classes):
        masks = resize(jax.nn.sigmoid(logits), padded)[:, :resized[0], :resized[1]]
        seen = resize(masks, network)
        pad = [(0, c - n) for c, n in zip(canvas, network)]
        pixels = resize(jnp.moveaxis(image.astype(jnp.float32), -1, 0), network)
        pixels = jnp.moveaxis(jnp.pad(pixels, [(0, 0), *pad]), 0, -1)
        build_model, _ = parameters.abstract(
            lambda: maskclippp.MaskCLIPpp(model_config, rngs=parameters.Keys(0)))
        net = build_model(params)
        grid = resample.masks_to_grid(jnp.pad(seen, [(0, 0), *pad])[None], 8)
        features = net.encode_image(pixels[None], jnp.array([network]), grid)
        name_logits = net.classify(features, names.embeddings)
        ours = maskclippp.class_logits(name_logits, names.synonym_class)
        ours = jax.nn.softmax(ours[0, :, :VOCABULARY.num_classes])
        theirs = jax.nn.softmax(classes[:, :-1])
        both = jax.nn.softmax(jnp.log(theirs**0.7 * ours**0.3 + 1e-8))
        void = jax.nn.softmax(classes)[:, -1:]
        return jnp.einsum("nc,nhw->chw", both * (1 - void), resize(masks, size))

    return run


def test_the_chain_equals_its_literal_form(place, config, model, generated):
    bundle = Bundle(place / "open")
    names = inference.embed_vocabulary(config, model.config, model.params, VOCABULARY)
    for number in (0, 1):
        picture = next(p for p in generated if p.image_id == NAMES[number])
        scores = literal_scores(model, names, bundle.read(NAMES[number]), number)
        second, first = np.sort(scores, 0)[-2:]
        clear = first - second > 1e-4
        assert clear.mean() > 0.5 and picture.found.labels.shape == SIZES[number]
        np.testing.assert_array_equal(picture.found.labels[clear], scores.argmax(0)[clear])
        assert len(np.unique(picture.found.labels)) > 1


def test_the_api_names_an_entry_of_a_bundle_as_an_evaluation_does(place, config, model, truth,
                                                                 generated):
    namer = Namer(config, model.config, model.params, "random")
    bundle, found = Bundle(place / "open"), {p.image_id: p.found for p in generated}
    for number, image_id in enumerate(NAMES):
        image = images.decode_image(truth.records[number]["image"], image_id)
        result = api.Model(namer).name(image, bundle[image_id], VOCABULARY)
        wanted = found[image_id]
        assert len(result) == bundle.pictures[image_id]["masks"]
        np.testing.assert_array_equal(result.classes, wanted.mask_classes[:len(result)])
        ids, segments = result.panoptic
        np.testing.assert_array_equal(ids, wanted.panoptic[0])
        assert [{k: s[k] for k in ("id", "category_id", "isthing")} for s in segments
                ] == wanted.panoptic[1]
        if len(result):
            np.testing.assert_array_equal(result.labels, wanted.labels)
            np.testing.assert_allclose(result.scores.sum(-1) + result.void, 1, atol=1e-5)
    with pytest.raises(ValueError, match="has no picture 'z', but 4 pictures"):
        bundle["z"]
    with pytest.raises(ValueError, match="of a picture of 56x40 pixels, this one has 8x8"):
        api.Model(namer).name(np.zeros((8, 8, 3), np.uint8), bundle["a"], VOCABULARY)


def test_a_picture_without_masks_has_empty_results(generated):
    found = next(p.found for p in generated if p.image_id == "e")
    assert not found.labels.any() and not found.panoptic[0].any() and found.panoptic[1] == []
    assert len(found.instances.scores) == 0


def naive_logits(kind, stored, vocabulary, text_embeddings, bundle):
    """Logits of the generator's own classes with void last, and of the test classes."""
    if kind == "embeddings":
        unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
        by_name = 20 * unit(stored) @ text_embeddings.T
        classes = np.stack([by_name[:, vocabulary.synonym_class == c].max(1)
                            for c in range(vocabulary.num_classes)], -1)
        return np.c_[classes, 20 * unit(stored) @ unit(np.full(16, 0.1))], classes
    if kind == "open":
        return stored, stored[:, :-1]
    classes = np.full((len(stored), vocabulary.num_classes), -np.inf)
    for j, names in enumerate(bundle.vocabulary.classes):
        if names[0] != "elsewhere":
            classes[:, [n[0] for n in vocabulary.classes].index(names[0])] = stored[:, j]
    return stored, classes


@pytest.mark.parametrize("kind", ["closed", "open", "embeddings"])
def test_every_kind_of_classes_gives_the_logits_it_means(tmp_path, rng, kind):
    write_generated(tmp_path / "b", names=["a"], kind=kind)
    bundle = Bundle(tmp_path / "b")
    columns = 128
    embeddings = rng.normal(size=(VOCABULARY.num_synonyms, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    padding = columns - len(embeddings)
    opinion = segmenter.opinion_of(bundle, VOCABULARY, np.ones(columns, np.float32),
                                   np.pad(embeddings, [(0, padding), (0, 0)]))
    stored = bundle.read("a").classes
    synonyms = np.pad(VOCABULARY.synonym_class, (0, padding), constant_values=columns)
    own, test = jax.jit(functools.partial(segmenter.generator_logits, kind))(
        stored[None], synonyms, opinion)
    wanted_own, wanted = naive_logits(kind, stored, VOCABULARY, embeddings, bundle)
    np.testing.assert_allclose(test[0, :, :VOCABULARY.num_classes], wanted, atol=2e-5)
    assert np.isneginf(test[0, :, VOCABULARY.num_classes:]).all()
    void = np.asarray(own.void[0])
    both = np.c_[np.asarray(own.classes[0])[:, :wanted_own.shape[1] - 1], void]
    np.testing.assert_allclose(both, wanted_own, atol=2e-5)


def test_logits_of_other_classes_are_refused(tmp_path):
    other = Vocabulary.from_string("x;y,z")
    weights = np.ones(64, np.float32)
    write_generated(tmp_path / "open", kind="open")
    with pytest.raises(ValueError, match="are of .* other classes .* than the 2 of command line"):
        segmenter.opinion_of(Bundle(tmp_path / "open"), other, weights)
    write_generated(tmp_path / "closed")
    with pytest.raises(ValueError, match="none of the 6 classes .* shares a name"):
        segmenter.opinion_of(Bundle(tmp_path / "closed"), other, weights)


def test_other_names_for_the_same_labels_need_no_other_data_set(config, truth, tmp_path):
    file, ids = tmp_path / "better.txt", truth.vocabulary.dataset_ids
    new = [f"new {n}" for n in range(len(ids))]
    file.write_text("\n".join(f"{name}, other {name}" for name in new))
    read = lambda: open_truth(config.data_dir, SETS, "validation", str(file))
    found = read()
    assert [names[0] for names in found.vocabulary.classes] == new
    assert found.vocabulary.classes[0][1] == "other new 0"
    assert found.vocabulary.is_thing == truth.vocabulary.is_thing and found.ids == truth.ids
    assert found.vocabulary.name.endswith(" in the names of better.txt")
    for source in found.sources.values():
        assert dict(zip(source.vocabulary.dataset_ids, source.vocabulary.classes)).items() <= dict(
            zip(ids, found.vocabulary.classes)).items()
    # Numbers of the data set, in another order, tell which line is which class.
    file.write_text("\n".join(f"{name}\tthing\t{i}" for name, i in list(zip(new, ids))[::-1]))
    assert read().vocabulary.classes == tuple((name,) for name in new)
    file.write_text("one\n")
    with pytest.raises(ValueError, match=f"has 1 classes, .* {len(ids)}; give a line for each"):
        read()


def test_true_masks_named_in_both_ways_agree(config, model, truth, mesh):
    """As segments of a label map, and one by one; masks, sizes and canvases differ in form only."""
    alone = Truth({"three": truth.sources["three"]}, "validation")
    chosen = [0, 2, 3]  # of one canvas
    with jax.set_mesh(mesh):
        segments = {p.image_id: p for p in passes.name_segments(config, model, alone, mesh, chosen)}
        masks = {p.image_id: p for p in passes.name_true_masks(
            config, model, alone, ["semantic"], mesh, chosen)}
    assert set(segments) == set(masks) == {NAMES[i] for i in chosen}
    for name, one in segments.items():
        other, used = masks[name], one.labels >= 0
        np.testing.assert_array_equal(one.labels[used], other.labels[other.labels >= 0])
        np.testing.assert_array_equal(one.found.mask_classes[used],
                                      other.found.mask_classes[other.labels >= 0])
        assert (one.found.labels == other.found.labels).mean() > 0.999


def measure(truth, run, parts=PARTS):
    evaluation = Evaluation(truth, None, parts)
    for picture in run:
        evaluation.add(picture.image_id, picture.found, picture.labels, picture.overlaps)
    return evaluation.results(0, 0)


def test_perfect_masks_with_perfect_classes_give_hundreds(place, truth):
    perfect = lambda pictures: measure(truth, passes.classify_perfectly(
        truth, PARTS, pictures, Bundle(place / "perfect")))
    # Elsewhere two things are of one class, and a class gets one mask.
    found = perfect([NAMES.index("c/d")])
    assert found["semantic"]["mIoU"] == found["boundary"]["mBIoU"] == 100
    found = perfect(range(4))
    assert found["panoptic"]["all"]["PQ"] == 100 and found["panoptic"]["things"]["categories"] == 3
    assert found["instances"]["AP"] == pytest.approx(100)
    less = measure(truth, passes.classify_perfectly(truth, PARTS, range(4),
                                                  Bundle(place / "generated")))
    assert less["panoptic"]["all"]["PQ"] < 50 and less["semantic"]["mIoU"] < 80


def test_the_recall_of_masks_is_counted_whatever_they_are_called(place, truth):
    look = lambda name: measure(truth, passes.classify_perfectly(
        truth, ["mask_recall"], range(4), Bundle(place / name)), ["mask_recall"])["mask_recall"]
    found = look("perfect")
    assert found["AR"] == found["things"] == found["stuff"] == 100 and found["segments"] == 20
    bundle, best = Bundle(place / "generated"), []
    for number, name in enumerate(NAMES):
        ids = source_ids(number)
        masks = bundle_tools.at_picture_size(bundle.read(name), SIZES[number]) > 0.5
        for i in range(1, 6):
            both = [(m & (ids == i)).sum() / ((m & (ids > 0)) | (ids == i)).sum() for m in masks]
            best.append(max(both, default=0))
    found = look("generated")
    wanted = [100 * np.mean([b >= t / 100 for b in best]) for t in range(50, 100, 5)]
    assert found["by_threshold"] == pytest.approx(wanted)
    assert 0 < found["AR"] == pytest.approx(np.mean(wanted)) and found["masks_per_picture"] == 3.75
    missed = Evaluation(truth, None, ["mask_recall"])
    missed.add_missing("a")
    missed = missed.results(0, 0)["mask_recall"]
    assert missed["AR"] == 0 and missed["segments"] == 5


def test_the_segments_to_be_found_are_the_finest_there_are(truth):
    alone = lambda name: Truth({name: truth.sources[name]}, "validation")
    assert truth.segments_of == "panoptic" and len(truth.segments("a").masks) == 5
    things = alone("three_instance").segments("a")
    assert things.classes.tolist() == [THINGS[0], THINGS[0], THINGS[1]] and things.counted.all()
    regions = alone("three").segments("a")  # two things of one class are one region
    assert sorted(regions.classes) == sorted([*STUFF, *THINGS[:2]])
    assert not regions.counted[:, -2:].any() and regions.counted[:, :-2].all()


def test_hidden_and_crowded_segments_are_asked_about(tmp_path, config, model, mesh):
    """In the panoptic form one prediction for each listed segment."""
    def make(number):
        ids = np.zeros((40, 56), int)
        ids[:20], ids[20:] = 7, 9
        image = images.encode_png(np.zeros((40, 56, 3), np.uint8))
        segments = [records.Segment(THINGS[0], True, True, source_id=7),
                    records.Segment(STUFF[0], False, source_id=8, area=3),
                    records.Segment(THINGS[1], True, source_id=9)]
        return [records.panoptic_record(image, "a", ids, segments)]

    build.build(str(tmp_path), "crowd", VOCABULARY, "panoptic",
                build.Reading(dict(validation=[0]), make), description="test", own_names=True)
    truth = open_truth(str(tmp_path), "crowd", "validation")
    with jax.set_mesh(mesh):
        picture, = passes.name_true_masks(config, model, truth, [], mesh, [0])
    assert picture.labels[picture.labels >= 0].tolist() == [THINGS[0], STUFF[0], THINGS[1]]
    results = measure(truth, [picture], ["mask_accuracy"])
    assert results["mask_accuracy"]["masks"] == 3


def test_missing_pictures_count_as_missed(truth, generated):
    evaluation = Evaluation(truth, None, PARTS)
    for name in NAMES:
        evaluation.add_missing(name)
    results = evaluation.results(0, 0)
    assert results["semantic"]["mIoU"] == 0 and results["instances"]["AP"] == 0
    counts = results["panoptic"]["counts"].values()
    assert sum(c["fn"] for c in counts) == 20 and sum(c["fp"] + c["tp"] for c in counts) == 0
    full = Evaluation(truth, None, PARTS)
    for picture in generated:
        full.add(picture.image_id, picture.found)
    part = Evaluation(truth, None, PARTS)
    for picture in generated[1:]:
        part.add(picture.image_id, picture.found)
    part.add_missing(generated[0].image_id)
    a, b = (e.results(0, 0)["semantic"] for e in (full, part))
    assert a["pACC"] > b["pACC"]


def test_a_stopped_evaluation_goes_on(tmp_path, truth, generated):
    whole = Evaluation(truth, None, PARTS)
    for picture in generated:
        whole.add(picture.image_id, picture.found)
    protocol = dict(dataset="three", ensemble="off")
    for part in (generated[:3], generated[3:]):
        evaluation = Evaluation(truth, None, PARTS)
        progress = Progress(tmp_path / "progress", evaluation, protocol)
        for picture in part:
            assert picture.image_id not in progress.done
            evaluation.add(picture.image_id, picture.found)
            progress.add(picture.image_id)
        progress.save()
    assert evaluation.results(50, 0) == whole.results(50, 0)
    with pytest.raises(ValueError, match="evaluation with ensemble 'off', now it is 'x'"):
        Progress(tmp_path / "progress", evaluation, dict(protocol, ensemble="x"))
    (tmp_path / "progress/1-of-2.npz").touch()
    with pytest.raises(ValueError, match="holds 1-of-2.npz, but there are 1 hosts now"):
        Progress(tmp_path / "progress", evaluation, protocol)


def test_the_best_and_the_worst_pictures_are_kept(tmp_path):
    scores = dict(zip("abcdefg", [5.0, 3, 9, 1, 4, 7, 5]))
    for part in ("abcd", "efg"):  # stopped in between
        extremes = Extremes(tmp_path / "x", 2)
        for name in part:
            extremes.add(name, scores[name], np.full((2, 3), ord(name)))
    assert [(n, s, int(m[0, 0])) for n, s, m in extremes.ranked()] == [
        (n, scores[n], ord(n)) for n in "cfbd"]
    assert {f.stem for f in (tmp_path / "x").glob("*.png")} == set("cfbd")
    nothing = Extremes(tmp_path / "y", 0)
    nothing.add("a", 1.0, np.zeros((2, 2)))
    assert nothing.ranked() == []


def test_the_score_of_a_picture_is_the_mean_over_its_classes():
    truth = np.array([[0, 0, 2, IGNORE], [0, 0, 2, IGNORE]])
    labels = np.array([[0, 0, 0, 7], [0, 2, 2, 7]])
    assert picture_score(labels, truth) == pytest.approx(100 * (3 / 5 + 1 / 3) / 2)
    assert picture_score(labels, np.full_like(truth, IGNORE)) is None


def test_confusions_come_worst_first():
    counts = np.array([[5, 0, 9], [5, 8, 0], [0, 2, 1]])
    assert metrics.confusions(counts, 2) == [
        dict(true=2, predicted=0, count=9, percent=90.0),
        dict(true=0, predicted=1, count=5, percent=50.0)]


def command(place, name, *line):
    environment = dict(os.environ, JAX_PLATFORMS="cpu", COLUMNS="120", PYTHONPATH=str(ROOT),
                       XLA_FLAGS=xla_flags.devices(1))
    return forked.run(name, *line, cwd=place, env=environment)


def evaluate(place, *line):
    return command(place, "evaluate", "--config=tiny.py", "--config.data_dir=data",
                   "--config.eval.seen_vocabulary=scenes_seen", *line)


def test_the_command_writes_results_that_score_finds_again(place):
    done = evaluate(place, "--checkpoint=untuned", "--bundle=generated", "--workdir=out",
                    "--save_predictions=found", "--samples=20", "--config.eval.ensemble=True",
                    "--config.eval.alpha=0.5", "--pictures=1")
    assert done.returncode == 0, done.stderr
    text = (place / "out/results.md").read_text()
    assert "| PQ of things |" in text and "- ensemble: alpha 0.5, beta 1.0" in text
    lines = (place / "out/per_class.csv").read_text().splitlines()
    assert lines[0] == ("number,id,kind,names,seen,untuned: IoU,untuned: pixel accuracy,"
                        "untuned: boundary IoU,untuned: PQ,untuned: AP")
    assert len(lines) == 1 + VOCABULARY.num_classes
    assert (place / "out/confusions.csv").read_text().startswith("model,of,true,named,count,")
    assert (place / "out/extremes-0.png").stat().st_size > 1000
    results = json.loads((place / "out/results.json").read_text())
    model, = results["models"]
    assert {"semantic", "boundary", "panoptic", "instances"} <= set(model)
    assert "mask_accuracy" not in model and not (place / "out/progress").exists()
    protocol = results["protocol"]
    assert protocol["ensemble"] == "alpha 0.5, beta 1.0" and "thresholds" in protocol
    for line in ("PQ of things", "AP50", "void: of the generator", "name random"):
        assert line in done.stdout
    done = command(place, "score", "--predictions=found", f"--dataset={SETS}", "--data_dir=data",
                   "--seen_vocabulary=scenes_seen", "--samples=20", "--output=scored.json")
    assert done.returncode == 0, done.stderr
    scored = json.loads((place / "scored.json").read_text())
    for part in ("semantic", "boundary", "panoptic", "instances"):
        got, wanted = ({k: v for k, v in x[part].items() if k not in ("intervals", "confusions")}
                       for x in (scored, model))
        assert got == wanted, part


def test_bad_input_ends_in_one_sentence_and_writes_nothing(place):
    write_generated(place / "less", names=NAMES[:3])
    shutil.copytree(place / "generated", place / "nan", dirs_exist_ok=True)
    file = bundle_writer.file_of(place / "nan", "a")
    with np.load(file) as arrays:
        arrays = dict(arrays)
    arrays["mask_logits"] = np.full(arrays.pop("mask_logit_bytes").shape[1:], np.nan, np.float16)
    np.savez(file, **arrays)
    model = "--checkpoint=untuned"
    for line, says in (
            ([model, "--bundle=less"], "lacks 1 picture (e) of the 4 of three"),
            ([model, "--bundle=nan"], "mask 0 (5 in all) holds NaN")):
        done = evaluate(place, "--workdir=bad", *line)
        assert done.returncode == 2 and says in done.stderr, done.stderr
        assert not (place / "bad/results.json").exists()
