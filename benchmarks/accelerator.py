"""What a GPU or TPU does, in one call of some minutes: python -m benchmarks.accelerator

Needs nothing but the package. Parity of stored cases on the device; the training step of two
published models over batch sizes, with memory and share of the peak; encoding pictures with 100 and
250 masks, whole evaluations with 20 to 10 000 classes, label maps alone, and a vocabulary's names.
Random weights of real size. Where torch sees the device, the same encoding runs in eager PyTorch
beside it (benchmarks/torch_peer.py). Writes --output.json and --output.md; what no time was left
for is named there. --sizes=quickstart tries the program itself on a CPU.
"""

import functools
import importlib
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import evaluation
from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.models import maskclippp
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.naming import inference, loading, postprocess, segmenter
from maskclippp_jax.naming.postprocess import Classes, Heads
from maskclippp_jax.parity import cases
from maskclippp_jax.runtime import devices, sharding
from maskclippp_jax.training import optim, train_step
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary

ROOT = pathlib.Path(__file__).parents[1]
MINUTES = flags.DEFINE_float("minutes", 8, "nothing new is begun after three quarters of them")
OUTPUT = flags.DEFINE_string("output", "accelerator", "of the two files, without their endings")
SIZES = flags.DEFINE_list("sizes", ["b16", "l14"], "models: b16, l14, quickstart")
PARTS = flags.DEFINE_list(
    "parts", ["parity", "train", "encode", "evaluate", "maps", "text"], "what")

# Experiment, model, pixels of the shorter side the tower sees, images a step.
MODELS = dict(
    quickstart=("quickstart", "quickstart", 64, (4,)),
    b16=("coco_panoptic_eva02_b16", "eva02_b16", 384, (4, 16, 64)),
    l14=("coco_stuff_eva02_l14_336", "eva02_l14_336", 392, (4, 8, 16)))
_CASES = ("tests/golden/encoders", "tests/golden/training")
_MASKS, _CLASSES = (100, 250), (20, 150, 847, 10000)
_TREES = (4, 16, 64)  # of prompts, encoded at a time


class Budget:
    """Runs measurements while there is time, and keeps what they found."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes * 3 / 4
        self.rows: list[dict] = []

    def run(self, what: str, measure, **facts) -> None:
        if time.monotonic() > self.end:
            found = dict(left_out="no time")
        else:
            start = time.monotonic()
            try:
                found = measure()
            except Exception as error:  # out of memory, mostly; the others are still wanted
                found = dict(failed=f"{type(error).__name__}: {str(error).splitlines()[0]:.120}")
            found["took"] = round(time.monotonic() - start, 1)
        self.rows.append(dict(what=what, **facts, **found))
        print(json.dumps(self.rows[-1]), flush=True)


def main(argv):
    del argv
    device, budget = jax.devices()[0], Budget(MINUTES.value)
    head = dict(device=device.device_kind, platform=device.platform, jax=jax.__version__,
                date=time.strftime("%Y-%m-%d"))
    print(json.dumps(head), flush=True)
    if "parity" in PARTS.value:
        for dtype in ("float32", "bfloat16"):
            paths = [str(ROOT / case) for case in _CASES]
            budget.run("parity", lambda: dict(passed=bool(cases.compare(paths, dtype))),
                       dtype=dtype)
    for size in SIZES.value:
        for part in PARTS.value:
            for what, facts, measure in MEASURES.get(part, lambda size: ())(size):
                budget.run(what, measure, model=size, **facts)
    name = pathlib.Path(OUTPUT.value)
    name.with_suffix(".json").write_text(json.dumps(dict(head, rows=budget.rows), indent=1) + "\n")
    name.with_suffix(".md").write_text(table(head, budget.rows))
    print(f"wrote {name}.json and {name}.md")


def table(head: dict, rows: list[dict]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"{head['device']}, jax {head['jax']}, {head['date']}", "",
             "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def seconds_of(run, turns: int = 5) -> float:
    """The median of some turns, after two that compile and warm up."""
    for _ in range(2):
        jax.block_until_ready(run())
    found = []
    for _ in range(turns):
        start = time.monotonic()
        jax.block_until_ready(run())
        found.append(time.monotonic() - start)
    return statistics.median(found)


def draw(make) -> parameters.Tree:
    """Random parameters, made on the device."""
    return jax.jit(lambda: parameters.initialize(make))()


def training(size: str):
    name, _, _, batches = MODELS[size]
    for images in batches:
        yield "training step", dict(dtype="bfloat16", images=images), functools.partial(
            train, name, images)


def train(name: str, images: int) -> dict:
    config = importlib.import_module(f"maskclippp_jax.configs.{name}").get_config().unlock()
    config.train.batch_size, config.dtype = images, "bfloat16"
    mesh, c, rng = sharding.make_mesh(1), config.train, np.random.default_rng(0)
    make = lambda: maskclippp.MaskCLIPpp(
        config.model, dtype=jnp.bfloat16, heads=configuration.heads_on(), remat=config.remat,
        layout=sharding.LAYOUT, rngs=parameters.Keys(0))
    build, _ = parameters.abstract(make)
    learns = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable, frozen = parameters.partition(draw(make), learns)
    optimizer = optim.make_optimizer(config.optimizer, c.steps, trainable, config.model)
    state = dict(step=jnp.int32(0), trainable=trainable, frozen=frozen,
                 opt=optimizer.init(trainable))
    shardings = sharding.state_shardings(jax.eval_shape(lambda: state), mesh)
    batch = dict(image=rng.integers(0, 256, (images, c.size, c.size, 3)).astype(np.uint8),
                 image_size=np.full((images, 2), c.size, np.int32),
                 segments=rng.integers(0, c.num_masks, (images, c.size, c.size)).astype(np.uint16),
                 labels=rng.integers(0, 171, (images, c.num_masks)).astype(np.int32))
    shape = (171, len(config.templates))
    if config.tune.text == "none":
        text = rng.normal(size=(*shape, config.model.image.embed_dim)).astype(np.float32)
    else:
        text = rng.integers(1, 1000, (*shape, 16)).astype(np.int32)
    whole = sharding.replicated(mesh)
    state, batch = jax.device_put(state, shardings), jax.device_put(
        batch, sharding.batch_sharding(mesh))
    rest = jax.device_put((np.arange(171, dtype=np.int32), text), whole)
    with jax.set_mesh(mesh):
        step = train_step.make_step(config, build, optimizer, shardings, mesh)
        compiled = step.lower(state, batch, *rest).compile()
        kept = [state]

        def once():
            kept[0], metrics = compiled(kept[0], batch, *rest)
            return metrics["loss"]

        seconds = seconds_of(once)
    kind = devices.describe(jax.devices()[0])
    flops = (compiled.cost_analysis() or {}).get("flops")
    share = kind and flops and f"{100 * flops / len(jax.devices()) / seconds / kind.flops:.0f} %"
    return dict(seconds=round(seconds, 4), images_per_second=round(images / seconds, 1),
                gib=gib(compiled), of_peak=share or "")


def gib(compiled) -> float:
    """Memory of a program with its arguments, by the compiler."""
    m = compiled.memory_analysis()
    return round((m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes
                  - m.alias_size_in_bytes) / 2**30, 2)


@functools.lru_cache(maxsize=1)  # sizes come one after the other
def model_of(size: str):
    config = getattr(MaskCLIPppConfig, MODELS[size][1])(1)
    return config, draw(lambda: maskclippp.MaskCLIPpp(config, rngs=parameters.Keys(0)))


def picture_of(size: str, num_masks: int, num_classes: int):
    """The model, and what `evaluate` gives its programs of one picture."""
    (config, params), side = model_of(size), MODELS[size][2]
    network = np.array([[n * side // min(evaluation.LOADED) for n in evaluation.LOADED]],
                       np.int32)
    batch, names, opinion = evaluation.make_inputs(config, num_masks, num_classes)
    placed = jax.device_put((params, batch, network, names, opinion))
    return config, placed, inference.canvas_of(network, config.image.patch_size)


def encoding(size: str):
    for num_masks in _MASKS:
        for dtype in ("float32", "bfloat16"):
            yield "encode", dict(dtype=dtype, masks=num_masks), functools.partial(
                encode, size, num_masks, dtype)
        yield "encode, PyTorch", dict(dtype="bfloat16", masks=num_masks), functools.partial(
            encode_in_torch, size, num_masks)


def encode(size: str, num_masks: int, dtype: str) -> dict:
    config, (params, batch, network, _, _), canvas = picture_of(size, num_masks, 1)
    tower, patch = inference.make_tower(config, dtype=jnp.dtype(dtype)), config.image.patch_size
    return pictures_in(seconds_of(lambda: tower(
        params, segmenter.lay_masks(batch, network, patch, canvas))))


def encode_in_torch(size: str, num_masks: int) -> dict:
    """Eager, with autocast to bfloat16."""
    try:
        import torch
    except ImportError:
        return dict(left_out="no torch")
    if not torch.cuda.is_available():
        return dict(left_out="torch sees no device")
    from benchmarks.torch_peer import Peer
    config, (params, batch, network, _, _), canvas = picture_of(size, num_masks, 1)
    peer = Peer(config, jax.device_get(params), "cuda")
    grid = [n // config.image.patch_size for n in canvas]
    pixels = torch.rand(1, 3, *canvas, device="cuda") * 255
    masks = torch.rand(1, num_masks, *grid, device="cuda")

    @torch.inference_mode()
    def once():
        with torch.autocast("cuda", torch.bfloat16):
            peer.encode(pixels, masks)
        torch.cuda.synchronize()
        return np.zeros(1)

    return pictures_in(seconds_of(once))


def evaluating(size: str):
    for num_classes in _CLASSES:
        yield "evaluate", dict(dtype="bfloat16", masks=100, classes=num_classes), (
            functools.partial(evaluate, size, num_classes))


def evaluate(size: str, num_classes: int) -> dict:
    config, (params, batch, network, names, opinion), canvas = picture_of(size, 100, num_classes)
    run = segmenter.make_segmenter(config, Heads(), "open", ensemble=True, dtype=jnp.bfloat16)
    classes = jax.device_put(Classes.of([True] * num_classes, len(names.synonym_class)))
    output = tuple(-(-side // 64) * 64 for side in evaluation.LOADED)
    return pictures_in(seconds_of(lambda: run(
        params, batch, network, names, opinion, classes, canvas=canvas, output_canvas=output)))


def maps(size: str):
    for num_classes in _CLASSES:
        yield "label map", dict(masks=100, classes=num_classes), functools.partial(
            label_map, size, num_classes)


def label_map(size: str, num_classes: int) -> dict:
    _, (_, batch, _, names, _), _ = picture_of(size, 100, num_classes)
    rows = len(names.synonym_class)
    scores = np.random.default_rng(0).normal(size=(1, batch["masks"].shape[1], rows))
    scores = jax.nn.softmax(jnp.asarray(3 * scores, jnp.float32))
    proposals = segmenter.proposals_of(batch, segmenter.MaskScores(
        jnp.where(jnp.arange(rows) < num_classes, scores, 0), jnp.zeros(scores.shape[:2])))
    heads = postprocess.make_heads(Heads())
    classes = jax.device_put(Classes.of([True] * num_classes, rows))
    output = tuple(-(-side // 64) * 64 for side in evaluation.LOADED)
    return pictures_in(seconds_of(lambda: heads(proposals, classes, canvas=output)))


def embedding(size: str):
    for trees in _TREES:
        yield "embed ADE20K-847", dict(dtype="float32", trees=trees), functools.partial(
            embed, size, trees)


def embed(size: str, trees: int) -> dict:
    config, params = model_of(size)
    ids = loading.tokenize(config, Vocabulary.shipped("ade20k_847"), TEMPLATES_14)
    loading._TREES = trees  # on a CPU it is always one
    seconds = seconds_of(lambda: loading.embed_names(config, params["text"], ids), turns=1)
    return dict(seconds=round(seconds, 4),
                prompts_per_second=round(ids.shape[0] * ids.shape[1] / seconds))


def pictures_in(seconds: float) -> dict:
    return dict(seconds=round(seconds, 4), pictures_per_second=round(1 / seconds, 1))


MEASURES = dict(train=training, encode=encoding, evaluate=evaluating, maps=maps,
                text=embedding)

if __name__ == "__main__":
    app.run(main)
