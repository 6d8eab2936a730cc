"""Every experiment in configs/: it loads, is sound, survives JSON, and its recipe runs a step."""

import dataclasses
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.data import catalogue, images, pipeline, records
from maskclippp_jax.data.tokenizer import SentencePieceTokenizer
from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    dinotxt,
    eva_vit,
    pe,
    siglip,
    similarity,
    text,
    tips,
)
from maskclippp_jax.naming import loading
from maskclippp_jax.runtime import sharding
from maskclippp_jax.training import compiled_step, optim, train_step
from maskclippp_jax.vocabulary import Vocabulary, draw_synonyms
from tests import pieces

NAMES = sorted(f.stem for f in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
               if f.stem != "common")
# Both augmentations, a tuned and a frozen text tower, batch norms, and the towers without other
# configurations. The others take a minute.
BY_DEFAULT = {"coco_stuff_eva02_l14_336", "coco_panoptic_rn50x16", "coco_stuff_tipsv2_l14",
              "coco_stuff_pe_core_l14_336", "coco_stuff_dinotxt_l16"}

PIECES = pathlib.Path(__file__).parent / "golden/siglip/tokenize/gemmalike.model"

# Small towers that keep what is particular to a model; widths fit the small text tower.
SMALL = {
    eva_vit.EvaViTConfig: dict(image_size=16, patch_size=8, width=16, depth=2, num_heads=2,
                               mlp_width=24, embed_dim=8, mask_layers=1),
    clip_convnext.ConvNeXtConfig: dict(image_size=64, widths=(4, 6, 8, 12), depths=(1, 1, 2, 1),
                                       embed_dim=8),
    clip_resnet.ResNetConfig: dict(image_size=64, width=4, depths=(1, 1, 1, 1), num_heads=2,
                                   embed_dim=8),
    siglip.SigLIPConfig: dict(image_size=16, patch_size=8, width=8, depth=3, num_heads=2,
                              mlp_width=12, embed_dim=8),
    pe.PEConfig: dict(image_size=16, patch_size=8, width=16, depth=3, num_heads=2, mlp_width=24,
                      embed_dim=8),
    tips.TIPSConfig: dict(image_size=16, patch_size=8, width=8, depth=2, num_heads=2, mlp_width=12,
                          mask_layers=1),
    dinotxt.DinoTxtConfig: dict(image_size=16, patch_size=8, width=16, depth=1, num_heads=2,
                                mlp_width=24, head_mlp_width=24, num_registers=2),
    text.TextConfig: dict(width=16, depth=1, num_heads=2),
    siglip.SigLIPTextConfig: dict(width=16, depth=1, num_heads=2, mlp_width=24),
    tips.TIPSTextConfig: dict(width=8, depth=1, num_heads=2, mlp_width=12),
    similarity.LinearSimilarityConfig: dict(width=6),
    similarity.PseudoTextSimilarityConfig: dict(embed_dim=8, num_heads=2),
}


def load(name):
    arg = "dataset=coco_stuff_171,names=coco_stuff_171" if name == "own_data" else None
    module = importlib.import_module(f"maskclippp_jax.configs.{name}")
    return module.get_config() if arg is None else module.get_config(arg)


def shrink(config, tmp_path):
    """The same recipe with a tiny model and pictures of four cells a side."""
    config = config.copy_and_resolve_references().unlock()
    small = lambda part, **more: dataclasses.replace(part, **SMALL[type(part)], **more)
    model, more = config.model, {}
    image, of_text = small(model.image), model.text
    if isinstance(of_text, tips.TIPSTextConfig):
        config.sentencepiece, more = pieces.tips_vocabulary(tmp_path), dict(vocab_size=64)
    else:
        more = dict(embed_dim=image.embed_dim)
    if isinstance(of_text, siglip.SigLIPTextConfig):
        config.sentencepiece = str(PIECES)
        more |= dict(vocab_size=SentencePieceTokenizer(config.sentencepiece, 64, 0).vocab_size)
    config.model = dataclasses.replace(
        model, image=image, similarity=small(model.similarity), text=small(of_text, **more))
    size = 4 * config.model.image.patch_size
    config.train.short_sides = tuple(s * size // config.train.size
                                     for s in config.train.short_sides)
    config.train.size, config.train.num_masks, config.weights = size, 8, "random"
    return config.lock()


def few(vocabulary, count=6):
    return dataclasses.replace(vocabulary, classes=vocabulary.classes[:count],
                               is_thing=vocabulary.is_thing[:count], colors=())


def draw_records(vocabulary, kind, rng, count=6):
    """Noise in three segments of as many classes."""
    found = []
    for number in range(count):
        label = np.sort(rng.integers(0, vocabulary.num_classes, 3)).repeat(20)[:, None].repeat(
            80, 1)  # [60, 80]
        image = images.encode_png(rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8))
        if kind == "semantic":
            record = records.semantic_record(image, f"p{number}", label, vocabulary.is_thing)
        else:
            rows = [records.Segment(int(c), vocabulary.is_thing[c], source_id=int(c) + 1)
                    for c in np.unique(label)]
            record = records.panoptic_record(image, f"p{number}", label + 1, rows)
        found.append(record)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_is_sound_and_survives_json(name):
    config = load(name)
    configuration.check(config, workdir="x")
    back = configuration.from_json(json.loads(json.dumps(configuration.to_json(config))))
    assert back.model == config.model
    assert configuration.to_json(back) == configuration.to_json(config)
    with pytest.raises(AttributeError):
        back.train.stpes = 3
    for dataset in (config.train.dataset, config.eval.dataset):
        assert dataset in catalogue.DATASETS
    Vocabulary.load(config.eval.seen_vocabulary)
    optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    header = importlib.import_module(f"maskclippp_jax.configs.{name}").__doc__
    assert f"--config={name}" in header


@pytest.mark.parametrize("name", [
    n if n in BY_DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_its_recipe_runs_a_step_with_a_small_model(name, rng, tmp_path):
    config = shrink(load(name), tmp_path)
    dataset = catalogue.DATASETS[config.train.dataset]
    vocabulary = few(Vocabulary.shipped(dataset.vocabulary))
    prompts = loading.tokenize(
        config.model, vocabulary, config.templates, config.sentencepiece)
    # As for an accelerator: fewer operations, so less to compile.
    make_model = loading.model_maker(config, platform="tpu")
    build, shapes = parameters.abstract(make_model)
    is_trainable = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    part, _ = parameters.partition(shapes, is_trainable)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, part, config.model)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1],
                         axis_types=(jax.sharding.AxisType.Auto,) * 2)
    source = draw_records(vocabulary, dataset.kind, rng)
    batch = next(pipeline.train_batches(
        [source], family=pipeline.family_of(config.train), num_masks=config.train.num_masks,
        batch_size=config.train.batch_size, seed=0))
    del batch["broken"]
    params = parameters.unflatten({  # variances of batch norms among them
        path: rng.uniform(0.01, 0.2, x.shape).astype(np.float32)
        for path, x in parameters.flatten(shapes).items()})
    trainable, frozen = parameters.partition(params, is_trainable)
    text = prompts
    if config.tune.text == "none":
        text = loading.embed_names(config.model, params["text"], prompts)
    with jax.set_mesh(mesh):
        state = dict(step=np.zeros((), np.int32), trainable=trainable, frozen=frozen,
                     opt=optimizer.init(trainable))
        shardings = sharding.state_shardings(state, mesh)
        step = train_step.make_step(config, build, optimizer, shardings, mesh)
        new, metrics = step(jax.device_put(state, shardings),
                            pipeline.to_device(batch, sharding.batch_sharding(mesh)),
                            draw_synonyms(vocabulary, rng), text)
        new, metrics = jax.device_get((new, metrics))
    assert np.isfinite(metrics["loss"]) and metrics["masks"] >= config.train.batch_size
    assert metrics["grad_norm"] > 0 and np.isfinite(metrics["grad_norm"])
    assert metrics["learning_rate"] == pytest.approx(config.optimizer.learning_rate)
    moved = lambda one, other: {path for path, x in parameters.flatten(one).items()
                                if not np.array_equal(x, parameters.flatten(other)[path])}
    learnt = {path.split("/")[0] for path in moved(new["trainable"], trainable)}
    assert learnt == set(trainable)  # some of each part; some rates are too low for every number
    statistics = {p for p in parameters.flatten(frozen)
                  if p.startswith("image/") and p.endswith(("/running_mean", "/running_var"))}
    assert moved(new["frozen"], frozen) == statistics  # of batch norms; others have none


@pytest.mark.parametrize("image, batch_norm, trains", [
    ("all", "batch", True), ("all_but_bn", "batch", True), ("all", "stored", False),
    ("none", "batch", False)])
def test_batch_norms_follow_the_batch_unless_frozen(image, batch_norm, trains):
    config = load("coco_panoptic_rn50x16").unlock()
    config.tune.image, config.tune.batch_norm = image, batch_norm
    assert train_step.image_in_training(config) == trains
    config.train.accumulate = 2
    if trains:
        with pytest.raises(ValueError, match="batch norms of this model need the whole batch"):
            configuration.check(config, workdir="x")
    else:
        configuration.check(config, workdir="x")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("coco_")])
def test_its_step_is_traced_at_full_size_from_shapes_alone(name):
    config = load(name)
    lowered = compiled_step.lower_training(config, sharding.make_mesh(1), 8)
    state, metrics = lowered.out_info
    assert metrics["loss"].shape == ()
    assert parameters.count(state["frozen"]) + parameters.count(state["trainable"]) > 1.4e8
