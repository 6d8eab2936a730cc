"""The published models at their real size, without their numbers."""

import functools
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.models import maskclippp
from maskclippp_jax.weights import ABSENT, published

# Parameters of SigLIP's towers, to the last one, as big_vision's code makes them.
SIGLIP_SIZES = {
    "SigLIP B/16 224": (92_884_224, 110_271_744),
    "SigLIP B/16 256": (92_930_304, 110_271_744),
    "SigLIP B/16 384": (93_176_064, 110_271_744),
    "SigLIP B/16 512": (93_520_128, 110_271_744),
    "SigLIP L/16 256": (315_956_224, 336_194_560),
    "SigLIP L/16 384": (316_283_904, 336_194_560),
    "SigLIP So400m/14 224": (427_680_704, 449_679_600),
    "SigLIP So400m/14 384": (428_225_600, 449_734_896),
    "SigLIP B/16 256 i18n": (92_930_304, 277_695_744),
    "SigLIP So400m/16 256 i18n": (427_888_064, 699_542_640),
    "SigLIP2 B/32 256": (94_552_320, 282_303_744),
    "SigLIP2 B/16 224": (92_884_224, 282_303_744),
    "SigLIP2 B/16 256": (92_930_304, 282_303_744),
    "SigLIP2 B/16 384": (93_176_064, 282_303_744),
    "SigLIP2 B/16 512": (93_520_128, 282_303_744),
    "SigLIP2 L/16 256": (315_956_224, 565_570_560),
    "SigLIP2 L/16 384": (316_283_904, 565_570_560),
    "SigLIP2 L/16 512": (316_742_656, 565_570_560),
    "SigLIP2 So400m/14 224": (427_680_704, 707_782_896),
    "SigLIP2 So400m/14 384": (428_225_600, 707_782_896),
    "SigLIP2 So400m/16 256": (427_888_064, 707_782_896),
    "SigLIP2 So400m/16 384": (428_256_704, 707_782_896),
    "SigLIP2 So400m/16 512": (428_772_800, 707_782_896),
    "SigLIP2 g-opt/16 256": (1_163_168_256, 708_225_648),
    "SigLIP2 g-opt/16 384": (1_163_659_776, 708_225_648),
    "SigLIP2 B/16 NaFlex": (92_930_304, 282_303_744),
    "SigLIP2 So400m/16 NaFlex": (427_888_064, 707_782_896),
}
# Of the newer towers, as their authors' code makes them, without what is not read here: the token
# that stands for hidden patches, biases of keys that are multiplied by 0.
NEWER_SIZES = {
    "TIPSv2 B/14": (86_315_520, 109_632_000),
    "TIPSv2 L/14": (304_015_360, 183_924_736),
    "TIPSv2 So400m/14": (413_392_752, 448_332_912),
    "TIPSv2 g/14": (1_135_950_848, 389_133_312),
    "PE-Core-T-16-384": (6_141_056, 63_405_056),
    "PE-Core-S-16-384": (23_783_168, 63_405_056),
    "PE-Core-B-16": (93_673_984, 353_986_560),
    "PE-Core-L-14-336": (317_152_256, 353_986_560),
    "PE-Core-bigG-14-448": (1_882_033_920, 537_233_920),
    "dino.txt L/16": (328_454_912, 538_131_200),
}
ENTRIES = {entry.name: entry for entry in published.MODELS}


@functools.lru_cache(maxsize=1)
def abstract(name):
    model = ENTRIES[name].model
    return parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(model, heads="together", rngs=parameters.Keys(0)))


# Towers that another row has as well take too long by default.
CLIPS = [pytest.param(name, marks=pytest.mark.slow) if name in ("EVA01-CLIP-g-14", "ViT-H-14-378")
         else name for name in ENTRIES if name not in SIGLIP_SIZES | NEWER_SIZES]


def test_every_published_model_states_its_size():
    assert set(ENTRIES) == set(published.MILLIONS)


@pytest.mark.parametrize("name", CLIPS)
def test_the_count_of_parameters_is_the_published_one(name):
    leaves = {p: x for p, x in parameters.flatten(abstract(name)[1]).items()
              if not p.startswith(ABSENT) and "/running_" not in p}  # statistics do not count
    counts = [sum(parameters.count(x) for p, x in leaves.items() if p.startswith(part))
              for part in ("image/", "text/")]
    assert [f"{n / 1e6:.2f}" for n in counts] == [f"{n:.2f}" for n in published.MILLIONS[name]]


@functools.lru_cache
def count(tower):
    _, shapes = parameters.abstract(lambda: tower.make(heads="together", rngs=parameters.Keys(0)))
    return sum(parameters.count(x) for path, x in parameters.flatten(shapes).items()
               if path != "mask_logit_scale")


@pytest.mark.parametrize("name", SIGLIP_SIZES | NEWER_SIZES)
def test_a_model_has_every_parameter_and_no_other(name):
    entry = ENTRIES[name]
    counts = count(entry.image), count(entry.text)
    assert counts == (SIGLIP_SIZES | NEWER_SIZES)[name]
    assert [f"{n / 1e6:.2f}" for n in counts] == [f"{n:.2f}" for n in published.MILLIONS[name]]


# One of each kind, the others take too long to lay out by default.
_LAID_OUT = ("SigLIP So400m/14 384", "SigLIP2 B/16 NaFlex", "TIPSv2 B/14", "PE-Core-T-16-384")


@pytest.mark.parametrize("name", [*CLIPS, *(
    name if name in _LAID_OUT else pytest.param(name, marks=pytest.mark.slow)
    for name in SIGLIP_SIZES | NEWER_SIZES)])
def test_it_runs_at_its_size(name):
    build, shapes = abstract(name)
    image, length = ENTRIES[name].image, ENTRIES[name].text.context_length
    cells = image.image_size // image.patch_size
    side = cells * image.patch_size
    of = jax.ShapeDtypeStruct

    def run(params, picture, size, masks, ids):
        model = build(params)
        return model.encode_image(picture, size, masks, dense=True), model.encode_text(ids)

    features, words = jax.eval_shape(
        run, shapes, of((1, side, side, 3), jnp.uint8), of((1, 2), jnp.int32),
        of((1, 5, cells * cells), jnp.float32), of((3, length), jnp.int32))
    width = image.embed_dim
    assert features.mask_embeddings.shape == (1, 5, width)
    assert features.image_embedding.shape == (1, width)
    assert features.patch_embeddings.shape == (1, cells * cells, width)
    assert words.shape == (3, width)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EVA02-CLIP-B-16", "ViT-B-32", "ViT-B-16", "convnext_base_w_320",
                                  "RN50", "SigLIP B/16 224", "SigLIP2 B/16 NaFlex", "TIPSv2 B/14",
                                  "PE-Core-B-16"])
def test_a_small_one_runs_for_real(name):
    model, image = ENTRIES[name].model, ENTRIES[name].image
    make = lambda: maskclippp.MaskCLIPpp(model, rngs=parameters.Keys(0))
    build, _ = parameters.abstract(make)
    params = jax.jit(lambda: parameters.initialize(make))()
    # With untrained statistics a ResNet's numbers grow until one patch has all attention.
    params = parameters.unflatten({path: 4 * x if path.endswith("running_var") else x
                                   for path, x in parameters.flatten(params).items()})
    side, cells = image.image_size, image.image_size // image.patch_size
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    size = np.array([[side, side], [side // 2, side - 9]], np.int32)
    masks = rng.random((2, 5, cells * cells)).astype(np.float32)
    run = jax.jit(lambda p, *a: build(p).encode_image(*a, dense=True))
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        found = jax.block_until_ready(run(params, picture, size, masks))
        seconds.append(time.monotonic() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{name}: 2 pictures of {side} pixels, first {seconds[0]:.1f} s with compilation, then "
          f"{seconds[1]:.2f} s; peak memory of the process so far {peak:.1f} GiB")
    assert np.isfinite(found.mask_embeddings).all() and np.isfinite(found.image_embedding).all()
    assert np.ptp(np.asarray(found.mask_embeddings), axis=1).max() > 0
