"""MaskCLIP++ beside the same computation in eager PyTorch, by turns: python -m benchmarks.peers

Random weights of real size that both sides share, float32; what both find is compared. Where torch
is missing (pip install torch) our side runs alone. Ours is what `evaluate` and `train` run; theirs
is benchmarks/torch_peer.py, with PyTorch's own fused attention; the literal form of an evaluation
in JAX is that of benchmarks/evaluation.py. "cores s" is the time of all cores of a CPU together,
which other programs on the machine disturb little; the memory is the peak of the whole process,
with libraries and weights.

The floor of a case are the matrix products that our form asks for, at the speed that large ones
have between its turns, and the bytes that the rest of its program moves (see roofline.py); of an
evaluation, those of its image tower. What PyTorch takes, in floors, is the most that this form can
be ahead of it on this machine.
"""

import functools
import importlib.util
import json
import statistics
import typing

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from rich.table import Table

from benchmarks import evaluation, heads, roofline, turns
from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.configs import coco_panoptic_eva02_b16
from maskclippp_jax.data import mask_chain
from maskclippp_jax.models import maskclippp
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.naming import inference, loading, segmenter
from maskclippp_jax.naming.postprocess import Classes, Heads
from maskclippp_jax.runtime import console, heap, sharding
from maskclippp_jax.training import losses, optim, train_step
from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary

CASES = ("multiply matrices 1536", "encode b16 16", "encode b16 100", "encode b16 250",
         "encode l14 100", "evaluate b16 20", "evaluate b16 150", "evaluate b16 847",
         "evaluate b16 10000", "evaluate-flat b16 150", "evaluate-flat b16 847", "text b16 32",
         "train b16 2", "train-anew b16 2")
CHOSEN = flags.DEFINE_list("cases", list(CASES), "what, model, and how many of it")
TURNS = flags.DEFINE_integer("turns", 5, "turns of each; the median counts", lower_bound=1)

_MODELS = dict(b16=("eva02_b16", 384), l14=("eva02_l14_336", 392))  # shorter side, pixels
_MASKS = 100        # of a picture that is evaluated
_PRODUCTS = 40      # of matrices, in a turn
_PROBE = "machine"  # a side that multiplies large matrices, for the speed of this moment
_PROBED = 1536, 8   # their rows, and how many in a turn
_SIDE, _SLOTS, _CLASSES, _TEMPLATES = 448, 16, 171, 14  # of a training step
_VOCABULARY = "ade20k_847"  # whose first names are embedded
_PUBLISHED = {"logit_scale": np.log(100), "image/mask_logit_scale": -5}  # about these
_OWN = 0.7          # share of a name that is its mask's own direction
_FLAT = 0.03        # length of what tells names apart, where they are about equally near


def main(argv):
    del argv
    speeds = turns.alone(roofline.byte_speeds)
    print(json.dumps(dict(gigabytes_a_second={size: round(x / 1e9, 1)
                                              for size, x in speeds.items()})), flush=True)
    table = Table(title=f"on {jax.devices()[0].device_kind}; cores s: median (least ... most)")
    columns = ("case", "ours", "PyTorch", "ratio", "products", "floor", "PyTorch in floors",
               "literal JAX", "peak MB", "PyTorch", "literal JAX", "largest difference")
    for column in columns:
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in CHOSEN.value:
        what, model, number = case.split()
        found = turns.take(sides_of(what, model, int(number)), TURNS.value)
        probe = statistics.median(found.pop(_PROBE).cores)
        seconds = {side: statistics.median(one.cores) for side, one in found.items()}
        work = turns.alone(work_of, what, model, int(number))
        multiplying = work.flops / product_flops(*_PROBED) * probe
        floor = multiplying + roofline.seconds_of_bytes(work, speeds)
        facts = {side: dict(cores=one.cores, wall=one.wall, peak_mb=round(one.peak_mb),
                            cleared_pages=one.cleared_pages,
                            difference=turns.difference(found["ours"], one))
                 for side, one in found.items()}
        moved = sum(size * count for size, count in work.moved.items())
        print(json.dumps(dict(case=case, gflop=round(work.flops / 1e9, 1),
                              gigabytes=round(moved / 1e9, 1), products=multiplying, floor=floor,
                              **facts)), flush=True)
        spread = lambda side: turns.spread(found[side].cores) if side in found else "–"
        peak = lambda side: f"{found[side].peak_mb:.0f}" if side in found else "–"
        ratio = lambda of: f"{seconds['theirs'] / of:.2f}" if "theirs" in found else "–"
        others = [one["difference"] for side, one in facts.items() if side != "ours"]
        table.add_row(
            case, spread("ours"), spread("theirs"), ratio(seconds["ours"]), f"{multiplying:.2f}",
            f"{floor:.2f}", ratio(floor), spread("literal"), peak("ours"), peak("theirs"),
            peak("literal"), f"{max(others):.1e}" if others else "–")
    console.show(table)


def sides_of(what: str, model: str, number: int) -> dict[str, turns.Load]:
    """What takes part in a case; each runs in a process of its own."""
    loaders, arguments = dict(SIDES[what]), (model, number)
    if what.startswith("evaluate"):
        arguments += (turns.alone(names_of_masks, model, number, what.endswith("flat")),)
        if number * np.prod(evaluation.LOADED) * 4 > heads.LIMIT.value * 1e9:
            loaders = dict(ours=loaders["ours"])
    if not importlib.util.find_spec("torch"):
        loaders.pop("theirs", None)
    sides = {side: functools.partial(load, *arguments) for side, load in loaders.items()}
    return sides | {_PROBE: functools.partial(our_products, "", *_PROBED)}


def work_of(what: str, model: str, number: int) -> roofline.Work:
    return WORK[what](model, number)


def draw(make: typing.Callable[[], nnx.Module]) -> parameters.Tree:
    """Random parameters of a module, the same for all sides."""
    _, shapes = parameters.abstract(make)
    rng = np.random.default_rng(0)

    def one(path, x):
        values = rng.standard_normal(x.shape, np.float32) / 50
        if path.startswith("similarity/") and path.endswith("kernel"):
            return np.full(x.shape, 1 / len(x), np.float32)  # the mean over templates
        if path in _PUBLISHED:
            return np.full(x.shape, _PUBLISHED[path], np.float32)
        return values + 1 if path.endswith("scale") else values

    return parameters.unflatten({path: one(path, x)
                                 for path, x in parameters.flatten(shapes).items()})


# ---- Matrix products: what both could reach ----------------------------------------------------


def our_products(what: str, rows: int, number: int = _PRODUCTS):
    del what
    one = jax.device_put(np.random.default_rng(0).standard_normal((rows, rows), np.float32))
    multiply = jax.jit(jnp.matmul)
    return lambda: [np.asarray([multiply(one, one) for _ in range(number)][-1])]


def product_flops(rows: int, number: int = _PRODUCTS) -> float:
    return 2.0 * number * rows**3


def their_products(what: str, rows: int):
    import torch

    del what
    one = torch.from_numpy(np.random.default_rng(0).standard_normal((rows, rows), np.float32))
    return lambda: [[one @ one for _ in range(_PRODUCTS)][-1].numpy()]


# ---- Encoding and evaluating one picture with a generator's masks ------------------------------


def picture_of(model: str, num_masks: int, num_classes: int = 1):
    """Sizes of the model (`b16`, or `b16:512` for a shorter side of 512), its parameters, what
    `evaluate` gives its programs, and the size the tower sees."""
    model, _, other = model.partition(":")
    name, side = _MODELS[model]
    side = int(other or side)
    config = getattr(MaskCLIPppConfig, name)(1)
    network = np.array([n * side // min(evaluation.LOADED) for n in evaluation.LOADED], np.int32)
    params = draw(lambda: maskclippp.MaskCLIPpp(config, rngs=parameters.Keys(0)))
    return config, params, *evaluation.make_inputs(config, num_masks, num_classes), network


def encoding(model: str, num_masks: int):
    """The image tower's program and what it takes."""
    config, params, batch, _, _, network = picture_of(model, num_masks)
    patch = config.image.patch_size
    lay = lambda: segmenter.lay_masks(batch, network[None], patch,
                                      inference.canvas_of(network[None], patch))
    return inference.make_tower(config), jax.device_put(params), lay


def our_encoder(model: str, num_masks: int):
    tower, params, lay = encoding(model, num_masks)
    return lambda: [np.asarray(tower(params, lay()).mask_embeddings)[0, :num_masks]]


def encoder_work(model: str, num_masks: int) -> roofline.Work:
    tower, params, lay = encoding(model, num_masks)
    return roofline.work_of(tower, params, lay())


def names_of_masks(model: str, num_classes: int, flat: bool) -> np.ndarray:
    """Unit vectors [C, E] of names: each of the first is near to what one mask shows, as real ones
    are, or all are about equally near to all masks."""
    rng = np.random.default_rng(1)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    masks = unit(our_encoder(model, _MASKS)()[0])
    common = unit(masks.mean(0))
    others = unit(rng.standard_normal((num_classes, len(common)), np.float32))
    if flat:
        return unit(common + _FLAT * others)
    names = unit(others - others @ common[:, None] * common)
    own = unit(masks - masks @ common[:, None] * common)[:num_classes]
    names[:len(own)] = unit(_OWN * own + (1 - _OWN**2) ** 0.5 * names[:len(own)])
    return names


def our_evaluation(model: str, num_classes: int, text: np.ndarray):
    config, params, batch, names, opinion, network = picture_of(model, _MASKS, num_classes)
    params, patch = jax.device_put(params), config.image.patch_size
    names.embeddings[:num_classes, 0] = text
    names = inference.make_folder(config)(params, names)
    run = segmenter.make_segmenter(config, Heads(), "open", ensemble=True)
    classes = Classes.of([True] * num_classes, len(names.synonym_class))
    height, width = evaluation.LOADED
    output = tuple(-(-side // 64) * 64 for side in evaluation.LOADED)

    def once():
        found = run(params, batch, network[None], names, opinion, classes,
                    canvas=inference.canvas_of(network[None], patch), output_canvas=output)
        return [counts(np.asarray(found.labels)[0, :height, :width], num_classes)]

    return once


def literal_evaluation(model: str, num_classes: int, text: np.ndarray):
    config, params, batch, _, _, network = picture_of(model, _MASKS, num_classes)
    make = lambda: maskclippp.MaskCLIPpp(config, heads=configuration.heads_on(),
                                         rngs=parameters.Keys(0))
    run = jax.jit(functools.partial(evaluation.literal_labels, make, tuple(map(int, network)),
                                    inference.canvas_of(network[None], config.image.patch_size)))
    params = jax.device_put(params)
    arrays = (batch["image"], batch["masks"][0, :_MASKS], batch["classes"][0, :_MASKS],
              text[:, None])
    return lambda: [counts(np.asarray(run(params, *arrays)), num_classes)]


def counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class: labels are no quantities."""
    return np.bincount(labels.ravel(), minlength=num_classes)


def _theirs_of(model: str, num_masks: int, num_classes: int = 1):
    import torch

    from benchmarks.torch_peer import Peer, grid_masks, resize
    config, params, batch, _, _, network = picture_of(model, num_masks, num_classes)
    peer = Peer(config, params)
    height, width = evaluation.LOADED
    picture = torch.from_numpy(batch["image"][:, :height, :width].transpose(0, 3, 1, 2).copy())
    logits = torch.from_numpy(batch["masks"][:, :num_masks].astype(np.float32))
    stored, enlarged, kept = (batch[k][0] for k in mask_chain.MaskSizes._fields)
    logits = logits[..., :stored[0], :stored[1]].contiguous()
    # The tower sees whole patches; ours pads what the reference pads as well.
    patch = config.image.patch_size
    padded = [-(-int(n) // patch) * patch for n in network]
    pad = (0, padded[1] - int(network[1]), 0, padded[0] - int(network[0]))

    def encode():
        masks, _ = grid_masks(logits, enlarged, kept, network, patch)
        small = torch.nn.functional.pad(resize(masks, network), pad)
        small = resize(small, [n // patch for n in padded])
        seen = resize(picture.float(), network)
        mean = torch.tensor([122.7709383, 116.7460125, 104.09373615]).reshape(1, 3, 1, 1)
        seen = torch.nn.functional.pad(seen - mean, pad) + mean  # 0 once normalised
        return masks, peer.encode(seen, small)

    return peer, encode, batch


def their_encoder(model: str, num_masks: int):
    import torch

    _, encode, _ = _theirs_of(model, num_masks)

    @torch.inference_mode()
    def once():
        return [encode()[1][0].numpy()]

    return once


def their_evaluation(model: str, num_classes: int, text: np.ndarray):
    import torch

    from benchmarks.torch_peer import label_map
    peer, encode, batch = _theirs_of(model, _MASKS, num_classes)
    text = torch.from_numpy(text[:, None])
    generator = torch.from_numpy(batch["classes"][:, :_MASKS])

    @torch.inference_mode()
    def once():
        masks, embeddings = encode()
        labels = label_map(masks, peer.classify(embeddings, text), generator, 0.9,
                           evaluation.LOADED)
        return [counts(labels.numpy(), num_classes)]

    return once


# ---- Embedding names ---------------------------------------------------------------------------


def prompts_of(model: str, num_names: int):
    """The text tower's sizes and parameters, and token ids [S, T, X]."""
    config = getattr(MaskCLIPppConfig, _MODELS[model][0])(1)
    params = draw(lambda: config.text.make(rngs=parameters.Keys(0)))
    token_ids = loading.tokenize(config, Vocabulary.shipped(_VOCABULARY), TEMPLATES_14)
    return config, params, token_ids[:num_names]


def our_text(model: str, num_names: int):
    config, params, token_ids = prompts_of(model, num_names)
    params = jax.device_put(params)
    return lambda: [loading.embed_names(config, params, token_ids)]


def text_work(model: str, num_names: int) -> roofline.Work:
    config, params, token_ids = prompts_of(model, num_names)
    build, _ = parameters.abstract(lambda: config.text.make(rngs=parameters.Keys(0)))
    chunks = loading.chunks_of_prompts(config.text, token_ids.reshape(-1, token_ids.shape[-1]))
    embed = jax.jit(lambda params, trees: build(params).embed_trees(trees))
    return roofline.work_of(embed, params, chunks[0][1], times=len(chunks))


def their_text(model: str, num_names: int):
    import torch

    from benchmarks.torch_peer import TextPeer
    config, params, token_ids = prompts_of(model, num_names)
    peer = TextPeer(config.text, params)
    # Always as long as the tower can take, as the reference's tokenizer gives them.
    empty = config.text.context_length - token_ids.shape[-1]
    prompts = torch.from_numpy(np.pad(token_ids, [(0, 0), (0, 0), (0, empty)]).astype(np.int64))

    @torch.inference_mode()
    def once():
        return [torch.stack([peer.encode(some) for some in prompts]).numpy()]

    return once


# ---- A training step ---------------------------------------------------------------------------


def training(batch_size: int):
    """The experiment, and a batch whose masks are squares."""
    config = coco_panoptic_eva02_b16.get_config().unlock()
    config.train.size, config.train.batch_size, config.train.num_masks = _SIDE, batch_size, _SLOTS
    config.dtype = "float32"
    rng = np.random.default_rng(0)
    squares = rng.integers(0, _SLOTS + 1, (batch_size, 7, 7)).astype(np.uint16)
    batch = dict(
        image=rng.integers(0, 256, (batch_size, _SIDE, _SIDE, 3)).astype(np.uint8),
        image_size=np.full((batch_size, 2), _SIDE, np.int32),
        segments=np.kron(squares, np.ones((_SIDE // 7,) * 2, np.uint16)),
        labels=rng.integers(0, _CLASSES, (batch_size, _SLOTS)).astype(np.int32))
    text = rng.normal(size=(_CLASSES, _TEMPLATES, config.model.image.embed_dim))
    text = (text / np.linalg.norm(text, axis=-1, keepdims=True)).astype(np.float32)
    return config, batch, text


def our_step(batch_size: int):
    """The program of a step, its mesh, its state, and what it takes besides."""
    config, batch, text = training(batch_size)
    mesh = sharding.make_mesh(1)
    build, _ = parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        config.model, heads=configuration.heads_on(), layout=sharding.LAYOUT,
        rngs=parameters.Keys(0)))
    learns = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    params = draw(lambda: maskclippp.MaskCLIPpp(config.model, rngs=parameters.Keys(0)))
    trainable, frozen = parameters.partition(params, learns)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, trainable, config.model)
    state = dict(step=np.int32(0), trainable=trainable, frozen=frozen,
                 opt=optimizer.init(trainable))
    shardings = sharding.state_shardings(jax.eval_shape(lambda: state), mesh)
    step = train_step.make_step(config, build, optimizer, shardings, mesh)
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    rest = jax.device_put((np.arange(_CLASSES, dtype=np.int32), text), sharding.replicated(mesh))
    return step, mesh, jax.device_put(state, shardings), (batch, *rest)


def our_training(model: str, batch_size: int, keep: bool = True):
    """As `train` runs it; or without keeping the memory that a step works in."""
    del model
    if keep:
        heap.use_first_thread()
    step, mesh, state, inputs = our_step(batch_size)
    kept = [state]

    def once():
        with jax.set_mesh(mesh):
            kept[0], metrics = step(kept[0], *inputs)
        if keep:
            heap.keep()
        return [np.array([metrics["loss"], metrics["grad_norm"]])]

    return once


def step_work(model: str, batch_size: int) -> roofline.Work:
    del model
    step, mesh, state, inputs = our_step(batch_size)
    with jax.set_mesh(mesh):
        return roofline.work_of(step, state, *inputs)


def their_training(model: str, batch_size: int):
    import torch

    from benchmarks.torch_peer import Peer, loss_of
    del model
    config, batch, text = training(batch_size)
    peer = Peer(config.model, draw(
        lambda: maskclippp.MaskCLIPpp(config.model, rngs=parameters.Keys(0))))
    learns = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    tuned = {path: w.requires_grad_() for path, w in peer.weights.items() if learns(path)}
    optimizer = torch.optim.AdamW(tuned.values(), lr=1e-6, weight_decay=0.05, fused=True)
    segments = torch.from_numpy(batch["segments"].astype(np.int64))
    present = np.stack([np.isin(np.arange(1, _SLOTS + 1), s) for s in batch["segments"]])
    weights = torch.from_numpy(np.array(losses.mask_weights(
        batch["labels"], present, balance_classes=config.loss.balance_classes)))
    labels = torch.from_numpy(batch["labels"].astype(np.int64))
    pixels = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy())
    text = torch.from_numpy(text)

    def once():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(peer, pixels.float(), segments, labels, weights, text)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(tuned.values(), config.optimizer.clip_norm)
        optimizer.step()
        return [np.array([loss.item(), norm.item()])]

    return once


_evaluating = dict(ours=our_evaluation, theirs=their_evaluation, literal=literal_evaluation)
SIDES: dict[str, dict[str, typing.Callable]] = {
    "multiply": dict(ours=our_products, theirs=their_products),
    "encode": dict(ours=our_encoder, theirs=their_encoder),
    "evaluate": _evaluating,
    "evaluate-flat": _evaluating,
    "text": dict(ours=our_text, theirs=their_text),
    "train": dict(ours=our_training, theirs=their_training),
    "train-anew": dict(ours=functools.partial(our_training, keep=False), theirs=their_training)}
_work_of_tower = lambda model, classes: encoder_work(model, _MASKS)
WORK: dict[str, typing.Callable] = {
    "multiply": lambda _, rows: roofline.Work(product_flops(rows), {}),
    "encode": encoder_work, "evaluate": _work_of_tower, "evaluate-flat": _work_of_tower,
    "text": text_work, "train": step_work, "train-anew": step_work}


if __name__ == "__main__":
    app.run(main)
