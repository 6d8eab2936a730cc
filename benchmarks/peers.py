"""MaskCLIP++ beside the same computation in eager PyTorch, by turns: python -m benchmarks.peers

Random weights of real size that both sides share, float32; what both find is compared. Where torch
is missing (pip install torch) our side runs alone. Ours is what `evaluate` and `train` run; theirs
is benchmarks/torch_peer.py, with PyTorch's own fused attention. "cores s" is the time of all cores
of a CPU together, which other programs on the machine disturb little; the memory is the peak of the
whole process, with libraries and weights.
"""

import functools
import importlib.util
import json
import statistics

import jax
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import evaluation, turns
from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.configs import coco_panoptic_eva02_b16
from maskclippp_jax.data import mask_chain
from maskclippp_jax.models import maskclippp
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.naming import inference, segmenter
from maskclippp_jax.naming.postprocess import Classes, Heads
from maskclippp_jax.runtime import sharding
from maskclippp_jax.training import losses, optim, train_step

ENCODING = ("encode b16 16", "encode b16 100", "encode b16 250", "encode l14 100")
EVALUATING = ("evaluate b16 20", "evaluate b16 150", "evaluate b16 847")
CASES = ("multiply matrices 1536", *ENCODING, *EVALUATING, "train b16 2")
CHOSEN = flags.DEFINE_list("cases", list(CASES), "what, model, and how many of it")
TURNS = flags.DEFINE_integer("turns", 5, "turns of each; the median counts", lower_bound=1)

_MODELS = dict(b16=("eva02_b16", 384), l14=("eva02_l14_336", 392))  # shorter side, pixels
_MASKS = 100        # of a picture that is evaluated
_PRODUCTS = 40      # of matrices, in a turn
_SIDE, _SLOTS, _CLASSES, _TEMPLATES = 448, 16, 171, 14  # of a training step


def main(argv):
    del argv
    table = Table(title=f"on {jax.devices()[0].device_kind}; median (least ... most)")
    columns = ("s", "cores s", "peak MB")
    for column in ("case", *columns, *(f"{c}, PyTorch" for c in columns), "ratio of cores",
                   "largest difference"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in CHOSEN.value:
        what, model, number = case.split()
        sides = {side: functools.partial(LOADERS[what, side], model, int(number))
                 for side in ("ours", "theirs")}
        if not importlib.util.find_spec("torch"):
            del sides["theirs"]
        found = turns.take(sides, TURNS.value)
        row = [case]
        for side in sides:
            one = found[side]
            row += [turns.spread(one.wall), turns.spread(one.cores), f"{one.peak_mb:.0f}"]
        if len(sides) == 2:
            ours, theirs = (found[side] for side in ("ours", "theirs"))
            row += [f"{statistics.median(theirs.cores) / statistics.median(ours.cores):.2f}",
                    f"{turns.difference(ours, theirs):.1e}"]
        print(json.dumps(dict(zip(("case", *columns, *(f"{c}, PyTorch" for c in columns),
                                   "ratio of cores", "largest difference"), row))), flush=True)
        table.add_row(*row, *[""] * (9 - len(row)))
    Console(width=180).print(table)


def draw(config: MaskCLIPppConfig) -> parameters.Tree:
    """Random parameters, the same for both sides; without the text tower's, which nothing needs."""
    _, shapes = parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(config, rngs=parameters.Keys(0)))
    rng = np.random.default_rng(0)

    def one(path, x):
        values = rng.standard_normal(x.shape, np.float32) / 50
        if path.endswith("mask_logit_scale"):
            return np.full(x.shape, -5, np.float32)  # as published
        return values + 1 if path.endswith("scale") else values

    return parameters.unflatten({path: one(path, x)
                                 for path, x in parameters.flatten(shapes).items()})


# ---- Matrix products: what both could reach ----------------------------------------------------


def our_products(what: str, rows: int):
    del what
    one = jax.device_put(np.random.default_rng(0).standard_normal((rows, rows), np.float32))
    multiply = jax.jit(jax.numpy.matmul)
    return lambda: [np.asarray([multiply(one, one) for _ in range(_PRODUCTS)][-1])]


def their_products(what: str, rows: int):
    import torch

    del what
    one = torch.from_numpy(np.random.default_rng(0).standard_normal((rows, rows), np.float32))
    return lambda: [[one @ one for _ in range(_PRODUCTS)][-1].numpy()]


# ---- Encoding and evaluating one picture with a generator's masks ------------------------------


def picture_of(model: str, num_masks: int, num_classes: int):
    """Sizes of the model, what `evaluate` gives its programs, and the size the tower sees."""
    name, side = _MODELS[model]
    config = getattr(MaskCLIPppConfig, name)(1)
    network = np.array([n * side // min(evaluation.LOADED) for n in evaluation.LOADED], np.int32)
    batch, names, opinion = evaluation.make_inputs(config, num_masks, num_classes)
    return config, batch, names, opinion, network


def our_encoder(model: str, num_masks: int):
    config, batch, _, _, network = picture_of(model, num_masks, 1)
    params, patch = jax.device_put(draw(config)), config.image.patch_size
    tower, canvas = inference.make_tower(config), inference.canvas_of(network[None], patch)

    def once():
        found = tower(params, segmenter.lay_masks(batch, network[None], patch, canvas))
        return [np.asarray(found.mask_embeddings)[0, :num_masks]]

    return once


def our_evaluation(model: str, num_classes: int):
    config, batch, names, opinion, network = picture_of(model, _MASKS, num_classes)
    params, patch = jax.device_put(draw(config)), config.image.patch_size
    run = segmenter.make_segmenter(config, Heads(), "open", ensemble=True)
    classes = Classes.of([True] * num_classes, len(names.synonym_class))
    height, width = evaluation.LOADED
    output = tuple(-(-side // 64) * 64 for side in evaluation.LOADED)

    def once():
        found = run(params, batch, network[None], names, opinion, classes,
                    canvas=inference.canvas_of(network[None], patch), output_canvas=output)
        labels = np.asarray(found.labels)[0, :height, :width]
        return [np.bincount(labels.ravel(), minlength=num_classes)]  # labels are no quantities

    return once


def _theirs_of(model: str, num_masks: int, num_classes: int):
    import torch

    from benchmarks.torch_peer import Peer, grid_masks, resize
    config, batch, names, _, network = picture_of(model, num_masks, num_classes)
    peer = Peer(config, draw(config))
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

    return peer, encode, batch, names


def their_encoder(model: str, num_masks: int):
    import torch

    _, encode, _, _ = _theirs_of(model, num_masks, 1)

    @torch.inference_mode()
    def once():
        return [encode()[1][0].numpy()]

    return once


def their_evaluation(model: str, num_classes: int):
    import torch

    from benchmarks.torch_peer import label_map
    peer, encode, batch, names = _theirs_of(model, _MASKS, num_classes)
    text = torch.from_numpy(names.embeddings[:num_classes])
    generator = torch.from_numpy(batch["classes"][:, :_MASKS])

    @torch.inference_mode()
    def once():
        masks, embeddings = encode()
        labels = label_map(masks, peer.classify(embeddings, text), generator, 0.9,
                           evaluation.LOADED)
        return [np.bincount(labels.numpy().ravel(), minlength=num_classes)]

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


def our_training(model: str, batch_size: int):
    del model
    config, batch, text = training(batch_size)
    mesh = sharding.make_mesh(1)
    build, _ = parameters.abstract(lambda: maskclippp.MaskCLIPpp(
        config.model, heads=configuration.heads_on(), layout=sharding.LAYOUT,
        rngs=parameters.Keys(0)))
    learns = optim.trainable_predicate(config.tune.image, config.tune.text, config.model)
    trainable, frozen = parameters.partition(draw(config.model), learns)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps, trainable, config.model)
    state = dict(step=np.int32(0), trainable=trainable, frozen=frozen,
                 opt=optimizer.init(trainable))
    shardings = sharding.state_shardings(jax.eval_shape(lambda: state), mesh)
    step = train_step.make_step(config, build, optimizer, shardings, mesh)
    kept = [jax.device_put(state, shardings)]
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    rest = jax.device_put((np.arange(_CLASSES, dtype=np.int32), text), sharding.replicated(mesh))

    def once():
        with jax.set_mesh(mesh):
            kept[0], metrics = step(kept[0], batch, *rest)
        return [np.array([metrics["loss"], metrics["grad_norm"]])]

    return once


def their_training(model: str, batch_size: int):
    import torch

    from benchmarks.torch_peer import Peer, loss_of
    del model
    config, batch, text = training(batch_size)
    peer = Peer(config.model, draw(config.model))
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


LOADERS = {("multiply", "ours"): our_products, ("multiply", "theirs"): their_products,
           ("encode", "ours"): our_encoder, ("encode", "theirs"): their_encoder,
           ("evaluate", "ours"): our_evaluation, ("evaluate", "theirs"): their_evaluation,
           ("train", "ours"): our_training, ("train", "theirs"): their_training}


if __name__ == "__main__":
    app.run(main)
