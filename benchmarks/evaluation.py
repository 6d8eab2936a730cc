"""Evaluating generated masks beside a literal form, in one run: python -m benchmarks.evaluation

From a picture and its masks to the label map, everything on the device: image tower with mask
tokens, class logits of all names, ensemble, label map at the size of the picture. The literal form
does what the public reference does around the same tower: all masks enlarged to each of the sizes
on their way, logits of exactly the classes there are (so every vocabulary is a program of its own),
the map of all classes, its argmax. On a CPU the time is that of all its cores together, which other
programs on the machine disturb little; their ratio and the bytes are what to look at.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.table import Table

from benchmarks import heads as measuring
from maskclippp_jax import config as configuration, params as parameters
from maskclippp_jax.data import mask_chain
from maskclippp_jax.models import maskclippp, resample
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.models.resample import Stage
from maskclippp_jax.naming import inference, segmenter
from maskclippp_jax.naming.postprocess import Classes, Heads
from maskclippp_jax.runtime import console

MODELS = flags.DEFINE_multi_enum("models", ["quickstart", "eva02_b16"],
                                 ["quickstart", "eva02_b16", "eva02_l14_336"], "sizes of the model")
SHORT_SIDES = dict(quickstart=64, eva02_b16=384, eva02_l14_336=392)  # pixels the tower sees
LOADED, GENERATOR, _MULTIPLE = (512, 683), (800, 1067), 32
_REGIONS = 12  # masks that cover a picture together


def main(argv):
    del argv
    table = Table(title=f"label maps of {LOADED[0]} x {LOADED[1]} pixels on "
                        f"{jax.devices()[0].device_kind}")
    for column in ("model", "masks", "classes", "ours s", "pictures/s", "MB", "literal s", "MB",
                   "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in MODELS.value:
        for num_masks in measuring.MASKS.value:
            for num_classes in measuring.CLASSES.value:
                row = measure(model, num_masks, num_classes)
                print(*row, sep="\t", flush=True)  # each takes a while
                table.add_row(*row)
    console.show(table)


def measure(name: str, num_masks: int, num_classes: int) -> list[str]:
    """One row of the table."""
    config = getattr(MaskCLIPppConfig, name)(1)
    make = lambda: maskclippp.MaskCLIPpp(config, heads=configuration.heads_on(),
                                         rngs=parameters.Keys(0))
    params = jax.jit(lambda: parameters.initialize(make))()
    network = np.array([side * SHORT_SIDES[name] // min(LOADED) for side in LOADED], np.int32)
    canvas = inference.canvas_of(network[None], config.image.patch_size)
    batch, names, opinion = make_inputs(config, num_masks, num_classes)
    classes = Classes.of([True] * num_classes, len(names.synonym_class))
    folded = inference.make_folder(config)(params, names)
    run = segmenter.make_segmenter(config, Heads(), "open", ensemble=True)
    run = jax.jit(run, static_argnames=("canvas", "output_canvas"))  # as one program
    ours = run.lower(params, batch, network[None], folded, opinion, classes, canvas=canvas,
                     output_canvas=tuple(-(-side // 64) * 64 for side in LOADED)).compile()
    mine = measuring.best_time(
        lambda: ours(params, batch, network[None], folded, opinion, classes))
    row = [name, f"{num_masks}", f"{num_classes}", f"{mine:.2f}", f"{1 / mine:.2f}",
           f"{measuring.megabytes(ours):.0f}"]
    literal = jax.jit(functools.partial(literal_labels, make, tuple(network), canvas)).lower(
        params, batch["image"], batch["masks"][0], batch["classes"][0],
        names.embeddings[:num_classes]).compile()
    if measuring.megabytes(literal) > 1000 * measuring.LIMIT.value:
        return row + ["–", f"{measuring.megabytes(literal):.0f}", "–"]
    theirs = measuring.best_time(lambda: literal(
        params, batch["image"], batch["masks"][0], batch["classes"][0],
        names.embeddings[:num_classes]))
    return row + [f"{theirs:.2f}", f"{measuring.megabytes(literal):.0f}", f"{theirs / mine:.1f}"]


def make_inputs(config, num_masks: int, num_classes: int):
    """A picture of coloured patches with their masks and a generator's logits of all classes, as
    `data.mask_batches` gives them; random names."""
    rng = np.random.default_rng(0)
    sizes = mask_chain.generated_mask_sizes(np.array(GENERATOR), _MULTIPLE)
    slots, rows = -(-num_masks // 8) * 8, 64
    while rows < num_classes:
        rows *= 2
    canvas = [-(-side // 64) * 64 for side in LOADED]
    stored = [-(-side // 16) * 16 for side in sizes.stored]
    masks = draw_masks(slots, stored, rng)
    one = lambda *x: np.array([x], np.int32)
    opinions = rng.normal(size=(1, slots, num_classes + 1)).astype(np.float32)
    opinions[0, np.arange(slots), np.arange(slots) % num_classes] += 8  # what each shows
    opinions[..., -1] -= 2  # void
    batch = dict(
        image=draw_picture(masks, canvas, rng)[None], image_size=one(*LOADED),
        output_size=one(*LOADED), masks=masks[None], classes=opinions,
        mask_valid=np.arange(slots)[None] < num_masks,
        **{k: np.asarray(v)[None] for k, v in sizes._asdict().items()})
    embeddings = rng.normal(size=(rows, 1, config.text.embed_dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    embeddings[num_classes:] = 0
    synonyms = np.where(np.arange(rows) < num_classes, np.arange(rows), rows).astype(np.int32)
    none = np.zeros(0, np.float32)
    opinion = segmenter.Opinion(np.zeros((rows, 0), np.float32), none, np.float32(1),
                                np.zeros(0, np.int32), np.full(rows, 0.9, np.float32))
    return batch, inference.Names(embeddings, synonyms), opinion


def draw_masks(number: int, size, rng) -> np.ndarray:
    """Logits [N, h, w] float16 as a generator's are, sure inside and outside: of regions that cover
    the picture together, and of ellipses on them, most of them small."""
    y, x = (np.arange(side) / side for side in size)
    row, column = rng.random((2, number, 1, 1))
    radius, stretch = (np.exp(rng.normal(mean, deviation, (number, 1, 1)))
                       for mean, deviation in ((np.log(0.12), 0.7), (0, 0.4)))
    distance = np.hypot((y[None, :, None] - row) * stretch, (x[None, None] - column) / stretch)
    logits = 12 * (1 - distance / radius)
    regions = distance[:_REGIONS]
    nearest, second = np.sort(regions, 0)[:2]
    logits[:_REGIONS] = 60 * np.where(regions == nearest, second - nearest, nearest - regions)
    return np.clip(logits, -60, 12).astype(np.float16)


def draw_picture(masks: np.ndarray, canvas, rng) -> np.ndarray:
    """[H, W, 3] uint8, coloured where masks are, so that a model can tell these apart."""
    labels = len(masks) - 1 - (masks > 0)[::-1].argmax(0)  # what lies on top
    rows, columns = (np.arange(n) * side // n for n, side in zip(canvas, labels.shape))
    colours = rng.integers(0, 200, (len(masks), 3))
    noise = rng.integers(0, 50, (*canvas, 3))
    return (colours[labels[rows[:, None], columns]] + noise).astype(np.uint8)


def literal_labels(make, network, canvas, params, image, logits, generator, embeddings):
    """Masks at every size, and all classes at full size."""
    sizes = mask_chain.generated_mask_sizes(np.array(GENERATOR), _MULTIPLE)
    resize = lambda x, to, n: resample.resize_masks(x, *(
        resample.bilinear_taps(to[i], Stage(n[i], to[i])) for i in range(2)))
    masks = jax.nn.sigmoid(logits[:, :sizes.stored[0], :sizes.stored[1]].astype(jnp.float32))
    masks = resize(masks, sizes.enlarged, sizes.stored)[:, :GENERATOR[0], :GENERATOR[1]]
    pad = [(0, c - n) for c, n in zip(canvas, network)]
    seen = jnp.pad(resize(masks, network, GENERATOR), [(0, 0), *pad])
    build, _ = parameters.abstract(make)
    model = build(params)
    picture = jax.vmap(lambda x: inference.to_network_size(
        x, jnp.array(LOADED), jnp.array(network), canvas))(image)
    grid = resample.masks_to_grid(seen[None], model.config.image.patch_size)
    features = model.encode_image(picture, jnp.array([network]), grid)
    ours = jax.nn.softmax(model.classify(features, embeddings)[0])
    theirs = jax.nn.softmax(generator[:, :-1])
    both = jax.nn.softmax(jnp.log(theirs**0.1 * ours**0.9 + 1e-8))
    both = both * (1 - jax.nn.softmax(generator)[:, -1:])
    full = resize(masks, LOADED, GENERATOR)
    return jnp.einsum("nc,nhw->chw", both, full, precision="highest").argmax(0)


if __name__ == "__main__":
    app.run(main)
