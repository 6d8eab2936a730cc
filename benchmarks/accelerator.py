"""What a GPU or TPU does, in one call of some minutes: python -m benchmarks.accelerator

Needs nothing but the package. Parity of stored cases on the device; attention in all its forms
there, against float32; the training step of two published models over batch sizes, with memory and
share of the peak; encoding pictures with 100 and 250 masks, whole evaluations with 20 to 10 000
classes, label maps alone, and a vocabulary's names. Random weights of real size. Where torch sees
the device, the same encoding and training step run in eager PyTorch beside it, in bfloat16 with its
own fused attention (benchmarks/torch_peer.py).

Writes --output.json and --output.md, which also say which form of attention to choose. What matters
most is measured first; what no time was left for is named, and the same call again gets there, as
compiled programs are kept. --sizes=quickstart tries the program itself on a CPU.
"""

import functools
import importlib
import json
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import evaluation
from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.models import layers, maskclippp, positions
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.naming import inference, loading, postprocess, segmenter
from maskclippp_jax.naming.postprocess import Classes, Heads
from maskclippp_jax.parity import cases
from maskclippp_jax.runtime import devices, programs, sharding
from maskclippp_jax.training import losses, optim, train_step
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary

ROOT = pathlib.Path(__file__).parents[1]
MINUTES = flags.DEFINE_float("minutes", 8, "nothing new is begun after three quarters of them")
OUTPUT = flags.DEFINE_string("output", "accelerator", "of the two files, without their endings")
SIZES = flags.DEFINE_list("sizes", ["b16", "l14"], "models: b16, l14, quickstart")
PARTS = flags.DEFINE_list(
    "parts", ["parity", "attention", "train", "encode", "evaluate", "maps", "text"], "what")

# Experiment, model, pixels of the shorter side the tower sees, images a step.
MODELS = dict(
    quickstart=("quickstart", "quickstart", 64, (4,)),
    b16=("coco_panoptic_eva02_b16", "eva02_b16", 384, (4, 16, 64)),
    l14=("coco_stuff_eva02_l14_336", "eva02_l14_336", 392, (4, 8, 16)))
_CASES = ("tests/golden/encoders", "tests/golden/training")
_MASKS, _CLASSES = (100, 250), (20, 150, 847, 10000)
_TREES = (4, 16, 64)  # of prompts, encoded at a time
_TRAINED = 171  # classes of a training step
_WIDE = 88      # channels of a head of the g/14 models, whose attention is measured as well
# Two forms of attention that are compared on each platform, see `layers.attend`.
_FORMS = dict(cpu=("apart", "together"), tpu=("together", "fused"), gpu=("together", "cudnn"))
_EXACT = 2  # times the error of the first form, up to which the last is as exact


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
    # Else JAX takes most of a GPU's memory for itself, and PyTorch finds none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    programs.keep(None)
    device, budget = jax.devices()[0], Budget(MINUTES.value)
    head = dict(device=device.device_kind, platform=device.platform, jax=jax.__version__,
                date=time.strftime("%Y-%m-%d"), attention=configuration.heads_on())
    print(json.dumps(head), flush=True)
    wanted = [(later, "parity", dict(dtype=dtype), functools.partial(compare, dtype))
              for later, dtype in enumerate(("float32", "bfloat16")) if "parity" in PARTS.value]
    wanted += [(later, what, dict(model=size, **facts), measure)
               for part in PARTS.value if part in MEASURES for size in SIZES.value
               for later, what, facts, measure in MEASURES[part](size)]
    for _, what, facts, measure in sorted(wanted, key=lambda x: x[0]):  # of equals, in this order
        budget.run(what, measure, **facts)
    says = advice(budget.rows, device.platform)
    print(*says, sep="\n")
    name = pathlib.Path(OUTPUT.value)
    name.with_suffix(".json").write_text(
        json.dumps(dict(head, advice=says, rows=budget.rows), indent=1) + "\n")
    name.with_suffix(".md").write_text(table(head, says, budget.rows))
    print(f"wrote {name}.json and {name}.md")


def compare(dtype: str) -> dict:
    paths = [str(ROOT / case) for case in _CASES]
    return dict(passed=bool(cases.compare(paths, dtype, require_all=False)))


def table(head: dict, says: list[str], rows: list[dict]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"{head['device']}, jax {head['jax']}, {head['date']}, attention {head['attention']}",
             "", *(f"{sentence}\n" for sentence in says),
             "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def advice(rows: list[dict], platform: str) -> list[str]:
    """Sentences: the two forms of attention beside each other, and of a GPU which to choose."""
    first, last = _FORMS[platform]
    case = lambda row: tuple(row.get(k) for k in (
        "what", "model", "dtype", "width", "images", "masks"))
    found = {(case(row), row["attention"]): row for row in rows if "attention" in row}
    pairs = [(one, found[what, last]) for (what, heads), one in found.items()
             if heads == first and "seconds" in one and "seconds" in found.get((what, last), ())]
    ratio = lambda pair, key: pair[1][key] / max(pair[0][key], 1e-9)
    says = []
    for pair in pairs:
        one = pair[0]
        where = ", ".join(f"{one[k]}{unit}" for k, unit in (
            ("model", ""), ("width", " channels a head"), ("images", " images"),
            ("masks", " masks")) if k in one)
        also = "".join(f", {ratio(pair, k):.2f} of its {words}" for k, words in (
            ("gib", "memory"), ("error", "error")) if one.get(k))
        says.append(f"{one['what']} ({where}): {last} takes {ratio(pair, 'seconds'):.2f} of the "
                    f"time of {first}{also}.")
    if platform == "gpu" and found:
        failed = any("failed" in row for (_, heads), row in found.items() if heads == last)
        exact = all(ratio(pair, "error") <= _EXACT for pair in pairs if "error" in pair[0])
        steps = [ratio(pair, "seconds") for pair in pairs if pair[0]["what"] == "training step"]
        why = ("fails" if failed else "is not as exact" if not exact else
               "was not measured" if not steps else "is not faster" if max(steps) >= 1 else "")
        says.append(f"Leave {configuration.GPU_ATTENTION} out: {last} {why} here." if why else
                    f"Set {configuration.GPU_ATTENTION}={last}: it is faster here, and as exact.")
    return says


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


def forms() -> tuple[str, ...]:
    return _FORMS[jax.devices()[0].platform]


def attention(size: str):
    config = config_of(MODELS[size][0])
    image = config.model.image
    tokens = 1 + (config.train.size // image.patch_size) ** 2
    own = image.width // image.num_heads
    for width in (own, _WIDE) if size == "l14" else (own,):
        for heads in forms():
            yield 0, "attention", dict(dtype="bfloat16", width=width, attention=heads), (
                functools.partial(attend, heads, tokens, image.num_heads, width))


def attend(heads: str, tokens: int, num_heads: int, width: int, images: int = 4) -> dict:
    """Forwards and backwards, a tenth of the keys hidden; the error is the largest of the result
    and the gradients, each as a share of its own norm."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    arrays = [draw(images, tokens, num_heads, width) for _ in range(4)]
    angles = draw(1, tokens, width)
    turn = positions.Rotation(jnp.cos(angles), jnp.sin(angles), positions.quarter_pairs)
    allowed = jnp.asarray(rng.random((images, 1, tokens)) < 0.9).at[..., 0].set(True)

    def compiled(dtype, heads):
        def run(queries, keys, values, change, allowed):
            value, pull = jax.vjp(lambda *x: layers.attend(
                *x, turn=turn, allowed=allowed, heads=heads), queries, keys, values)
            return value, *pull(change)
        given = *(x.astype(dtype) for x in arrays), allowed
        return jax.jit(run).lower(*given).compile(), given

    program, given = compiled(jnp.bfloat16, heads)
    with jax.default_matmul_precision("highest"):
        exact, rounded = compiled(jnp.float32, "together")
        # Of the same numbers, which bfloat16 holds.
        want = exact(*(x.astype(jnp.bfloat16).astype(jnp.float32) for x in rounded[:4]), allowed)
    norm = lambda x: float(jnp.linalg.norm(x.astype(jnp.float32).ravel()))
    errors = [norm(x - y) / norm(y) for x, y in zip(program(*given), want, strict=True)]
    seconds = seconds_of(lambda: program(*given), turns=20)
    return dict(seconds=float(f"{seconds:.3g}"), gib=gib(program),
                error=float(f"{max(errors):.3g}"))


def training(size: str):
    name, _, _, batches = MODELS[size]
    main = batches[len(batches) // 2]
    for images in batches:
        for heads in forms() if images == main else (configuration.heads_on(),):
            yield int(images != main), "training step", dict(
                dtype="bfloat16", images=images, attention=heads), functools.partial(
                    train, name, images, heads)
    if config_of(name).tune.text == "none":
        yield 0, "training step, PyTorch", dict(dtype="bfloat16", images=main), functools.partial(
            train_in_torch, name, main)


def config_of(name: str):
    return importlib.import_module(f"maskclippp_jax.configs.{name}").get_config().unlock()


def training_batch(name: str, images: int):
    """An experiment, and a random batch and text for its step."""
    config, rng = config_of(name), np.random.default_rng(0)
    c = config.train
    c.batch_size, config.dtype = images, "bfloat16"
    batch = dict(image=rng.integers(0, 256, (images, c.size, c.size, 3)).astype(np.uint8),
                 image_size=np.full((images, 2), c.size, np.int32),
                 segments=rng.integers(0, c.num_masks, (images, c.size, c.size)).astype(np.uint16),
                 labels=rng.integers(0, _TRAINED, (images, c.num_masks)).astype(np.int32))
    shape = (_TRAINED, len(config.templates))
    if config.tune.text == "none":
        text = rng.normal(size=(*shape, config.model.image.embed_dim)).astype(np.float32)
    else:
        text = rng.integers(1, 1000, (*shape, 16)).astype(np.int32)
    return config, batch, text


def train(name: str, images: int, heads: str) -> dict:
    config, batch, text = training_batch(name, images)
    mesh = sharding.make_mesh(1)
    make = lambda: maskclippp.MaskCLIPpp(
        config.model, dtype=jnp.bfloat16, heads=heads, remat=config.remat,
        layout=sharding.LAYOUT, rngs=parameters.Keys(0))
    build, _ = parameters.abstract(make)
    learns = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable, frozen = parameters.partition(draw(make), learns)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, trainable, config.model)
    state = dict(step=jnp.int32(0), trainable=trainable, frozen=frozen,
                 opt=optimizer.init(trainable))
    shardings = sharding.state_shardings(jax.eval_shape(lambda: state), mesh)
    whole = sharding.replicated(mesh)
    state, batch = jax.device_put(state, shardings), jax.device_put(
        batch, sharding.batch_sharding(mesh))
    rest = jax.device_put((np.arange(_TRAINED, dtype=np.int32), text), whole)
    with jax.set_mesh(mesh):
        step = train_step.make_step(config, build, optimizer, shardings, mesh)
        compiled = step.lower(state, batch, *rest).compile()
        kept = [state]

        def once():
            kept[0], metrics = compiled(kept[0], batch, *rest)
            return metrics["loss"]

        seconds = seconds_of(once)
    kind = devices.describe(jax.devices()[0])
    flops = (compiled.cost_analysis() or {}).get("flops")  # of each device
    if flops and heads == "cudnn":  # the compiler does not know what is inside
        image = config.model.image
        tokens = 1 + (config.train.size // image.patch_size) ** 2
        flops += 12 * images / mesh.size * image.depth * tokens**2 * image.width
    share = kind and flops and f"{100 * flops / seconds / kind.flops:.0f} %"
    return dict(seconds=round(seconds, 4), images_per_second=round(images / seconds, 1),
                gib=gib(compiled), of_peak=share or "")


def train_in_torch(name: str, images: int) -> dict:
    """Eager, with autocast to bfloat16."""
    torch = torch_with_device()
    if isinstance(torch, str):
        return dict(left_out=torch)
    from benchmarks.torch_peer import Peer, loss_of
    config, batch, text = training_batch(name, images)
    params = draw(lambda: maskclippp.MaskCLIPpp(config.model, rngs=parameters.Keys(0)))
    peer = Peer(config.model, jax.device_get(params), "cuda")
    learns = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    tuned = [w.requires_grad_() for path, w in peer.weights.items() if learns(path)]
    optimizer = torch.optim.AdamW(tuned, lr=1e-6, weight_decay=0.05, fused=True)
    slots = np.arange(1, config.train.num_masks + 1)
    present = np.stack([np.isin(slots, s) for s in batch["segments"]])
    weights = np.array(losses.mask_weights(
        batch["labels"], present, balance_classes=config.loss.balance_classes))
    on_device = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to("cuda")
    pixels = on_device(batch["image"].transpose(0, 3, 1, 2)).float()
    segments, labels = (on_device(batch[k].astype(np.int64)) for k in ("segments", "labels"))
    weights, text = on_device(weights), on_device(text)

    def once():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(peer, pixels, segments, labels, weights, text)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, config.optimizer.clip_norm)
        optimizer.step()
        torch.cuda.synchronize()
        return np.zeros(1)

    torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(once)
    return dict(seconds=round(seconds, 4), images_per_second=round(images / seconds, 1),
                gib=round(torch.cuda.max_memory_allocated() / 2**30, 2))


def torch_with_device():
    """PyTorch, or why not."""
    try:
        import torch
    except ImportError:
        return "no torch"
    return torch if torch.cuda.is_available() else "torch sees no device"


def gib(compiled) -> float:
    """Memory of a program with its arguments, by the compiler."""
    m = compiled.memory_analysis()
    return round((m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes
                  - m.alias_size_in_bytes) / 2**30, 2)


@functools.lru_cache(maxsize=2)
def model_of(size: str):
    config = getattr(MaskCLIPppConfig, MODELS[size][1])(1)
    return config, draw(lambda: maskclippp.MaskCLIPpp(config, rngs=parameters.Keys(0)))


def picture_of(size: str, num_masks: int, num_classes: int):
    """The model, and what `evaluate` gives its programs of one picture."""
    (config, params), side = model_of(size), MODELS[size][2]
    network = np.array([[n * side // min(evaluation.LOADED) for n in evaluation.LOADED]],
                       np.int32)
    batch, names, opinion = evaluation.make_inputs(config, num_masks, num_classes)
    names = inference.make_folder(config)(params, names)
    placed = jax.device_put((params, batch, network, names, opinion))
    return config, placed, inference.canvas_of(network, config.image.patch_size)


def encoding(size: str):
    for num_masks in _MASKS:
        yield 1, "encode", dict(dtype="float32", masks=num_masks), functools.partial(
            encode, size, num_masks, "float32", configuration.heads_on())
        for heads in forms():
            yield 0, "encode", dict(dtype="bfloat16", masks=num_masks, attention=heads), (
                functools.partial(encode, size, num_masks, "bfloat16", heads))
        yield 0, "encode, PyTorch", dict(dtype="bfloat16", masks=num_masks), functools.partial(
            encode_in_torch, size, num_masks)


def encode(size: str, num_masks: int, dtype: str, heads: str) -> dict:
    config, (params, batch, network, _, _), canvas = picture_of(size, num_masks, 1)
    build, _ = parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        config, dtype=jnp.dtype(dtype), heads=heads, rngs=parameters.Keys(0)))
    tower = jax.jit(lambda params, laid: build(params).encode_image(*laid))
    patch = config.image.patch_size
    return pictures_in(seconds_of(lambda: tower(
        params, segmenter.lay_masks(batch, network, patch, canvas))))


def encode_in_torch(size: str, num_masks: int) -> dict:
    """Eager, with autocast to bfloat16."""
    torch = torch_with_device()
    if isinstance(torch, str):
        return dict(left_out=torch)
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
        yield int(num_classes not in (150, 10000)), "evaluate", dict(
            dtype="bfloat16", masks=100, classes=num_classes), functools.partial(
                evaluate, size, num_classes)


def evaluate(size: str, num_classes: int) -> dict:
    config, (params, batch, network, names, opinion), canvas = picture_of(size, 100, num_classes)
    run = segmenter.make_segmenter(config, Heads(), "open", ensemble=True, dtype=jnp.bfloat16)
    classes = jax.device_put(Classes.of([True] * num_classes, len(names.synonym_class)))
    output = tuple(-(-side // 64) * 64 for side in evaluation.LOADED)
    return pictures_in(seconds_of(lambda: run(
        params, batch, network, names, opinion, classes, canvas=canvas, output_canvas=output)))


def maps(size: str):
    for num_classes in _CLASSES:
        yield 1, "label map", dict(masks=100, classes=num_classes), functools.partial(
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
        yield 1, "embed ADE20K-847", dict(dtype="float32", trees=trees), functools.partial(
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


# Each gives, of a size: 1 if it may wait, what is measured, facts of its row, and what measures.
MEASURES = dict(attention=attention, train=training, encode=encoding, evaluate=evaluating,
                maps=maps, text=embedding)

if __name__ == "__main__":
    app.run(main)
