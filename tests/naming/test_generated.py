"""A generator's masks of a data set: what is stored is what is made, and a stop costs nothing."""

import types

import numpy as np
import pytest

import maskclippp_jax as mc
from maskclippp_jax.data import build, images, records
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.data.generator_input import Preparation
from maskclippp_jax.data.transforms import Version, versions_of
from maskclippp_jax.naming import generated
from maskclippp_jax.naming.generated import Generated
from maskclippp_jax.naming.generator import Generator
from maskclippp_jax.vocabulary import Vocabulary
from tests import tiny_eomt, tiny_generators

SIZES = {"a": (40, 56), "b/c": (61, 33), "d": (30, 30)}
SETTINGS = types.SimpleNamespace(loader_min=32, loader_max=50, mask_short_side=64)


def make_record(name):
    height, width = SIZES[name]
    picture = images.encode_png(np.random.default_rng(height).integers(
        0, 256, (height, width, 3)).astype(np.uint8))
    return [records.semantic_record(picture, name, np.zeros((height, width), int), [True, False])]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build.build(str(folder), "three", Vocabulary.from_text("x\ny\n", "two"), "semantic",
                build.Reading(dict(validation=list(SIZES)), make_record), description="test",
                own_names=True)
    return records.open_source(str(folder), "three", "validation").records


@pytest.fixture(scope="module")
def eomt(tmp_path_factory):
    return mc.load_generator(tiny_eomt.write_folder(tmp_path_factory.mktemp("hub") / "tiny"))


def of(generator, rows, version=Version()):
    return Generated(generator, rows, version=version,
                     preparation=generated.preparation_of(generator, SETTINGS))


def assert_stored(folder, made, **tolerance):
    bundle = Bundle(folder)
    assert (bundle.preparation, bundle.version) == (made.preparation, made.version)
    assert (bundle.kind, bundle.width, bundle.stride) == (made.kind, made.width, made.stride)
    assert bundle.generator == made.generator and set(bundle.pictures) == set(SIZES)
    assert bundle.most_masks == made.most_masks and bundle.classes == made.classes
    for name in SIZES:
        one, other = bundle.read(name), made.read(name)
        np.testing.assert_allclose(one.masks, other.masks, **tolerance)
        np.testing.assert_array_equal(one.classes, other.classes)
        assert one[2:] == other[2:]
        assert bundle.stored_size(name) == made.stored_size(name) == other.masks.shape[1:]


@pytest.mark.parametrize("version", versions_of((24, 40), flip=True)[1:] + [Version()], ids=str)
def test_what_is_stored_is_what_is_made_of_every_version(tmp_path, eomt, rows, version):
    made = of(eomt, rows, version)
    assert made.preparation == Preparation(None, None, None, 64, letterbox=64)
    assert generated.export(made, tmp_path / "b", float32=True) == 3
    assert_stored(tmp_path / "b", made, rtol=0, atol=0)
    # Every query, as the generator itself sees the picture of this version.
    if version == Version():
        image = images.decode_image(rows[0]["image"], "a")
        wanted = eomt.propose(image)
        np.testing.assert_array_equal(made.read(records.id_of(rows[0])).masks, wanted.masks)
        assert len(wanted.masks) == tiny_eomt.CONFIG.num_queries


def test_float16_keeps_three_digits_of_logits(tmp_path, eomt, rows):
    made = of(eomt, rows)
    generated.export(made, tmp_path / "b")
    assert_stored(tmp_path / "b", made, rtol=2**-11, atol=1e-7)


def test_open_generators_see_pictures_at_the_sizes_of_the_evaluation(tmp_path, rows):
    """Loaded at 32 to 50 pixels, then at 64: as a published evaluation has 512 to 2048, then 800.
    """
    generator = Generator(tiny_generators.FCCLIP, tiny_generators.fcclip_params(), None, "open",
                          objectness=0.0)
    assert generated.preparation_of(generator) == Preparation(800, 2560, None, 32)
    one_size = [row for row in map(rows.__getitem__, range(3)) if records.id_of(row) == "a"]
    made = of(generator, one_size)
    assert made.preparation == Preparation(32, 50, 64, 32)
    assert made.sizes("a") == ((40, 56), (32, 45), (64, 90), (64, 96))
    assert made.kind == "embeddings" and made.vocabulary is None and made.width == 16
    generated.export(made, tmp_path / "b", float32=True)
    bundle, found = Bundle(tmp_path / "b"), made.read("a")
    np.testing.assert_array_equal(bundle.read("a").masks, found.masks)
    np.testing.assert_array_equal(bundle.read("a").classes, found.classes)
    assert found.kept == (64, 90) and found.masks.shape[1:] == (16, 24)
    assert bundle.classes == made.classes and len(bundle.classes["templates"]) == 14


def test_a_stopped_export_goes_on_with_what_is_left(tmp_path, eomt, rows, monkeypatch):
    made, looked = of(eomt, rows), []

    def read(image_id):
        looked.append(image_id)
        if len(looked) == 2:
            raise ValueError("stop")
        return type(made).read(made, image_id)

    monkeypatch.setattr(generated.os, "cpu_count", lambda: 1)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="stop"):
        patch.setattr(made, "read", read)
        generated.export(made, tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="is not finished; start the command"):
        Bundle(tmp_path / "b")
    with pytest.raises(ValueError, match="begun with another generator or other settings"):
        generated.export(made, tmp_path / "b", float32=True)
    stopped = list(looked)
    monkeypatch.setattr(made, "read", read)
    assert generated.export(made, tmp_path / "b") == 3
    assert stopped[0] not in looked[len(stopped):] and set(looked) == set(SIZES)
    assert_stored(tmp_path / "b", of(eomt, rows), rtol=2**-11, atol=1e-7)


def test_masks_that_are_no_numbers_are_named(eomt, rows, monkeypatch):
    made = of(eomt, rows)
    bad = made.read("a")
    monkeypatch.setattr(eomt, "propose", lambda image: bad._replace(
        classes=np.full_like(bad.classes, np.nan)))
    with pytest.raises(ValueError, match="gives NaN for picture a; its weights are damaged"):
        made.read("a")


def test_a_generator_for_label_maps_is_refused(rows):
    generator = Generator(tiny_eomt.CONFIG, tiny_eomt.params(),
                          Vocabulary.from_names(tiny_eomt.CLASSES), "tiny", task="semantic")
    with pytest.raises(ValueError, match="tiny was trained for label maps.*take a panoptic"):
        of(generator, rows)
