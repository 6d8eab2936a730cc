"""The published models at their real size, without their numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskclippp_jax import params as parameters
from maskclippp_jax.models import maskclippp
from maskclippp_jax.weights import ABSENT, published

# Millions of parameters, image and text tower, as OpenCLIP's table of model profiles has them.
SIZES = {
    "EVA02-CLIP-B-16": (86.26, 63.43), "EVA02-CLIP-L-14": (304.11, 123.65),
    "EVA02-CLIP-L-14-336": (304.43, 123.65), "EVA01-CLIP-g-14-plus": (1012.59, 354.03),
    "ViT-B-32": (87.85, 63.43), "ViT-B-16": (86.19, 63.43), "ViT-L-14": (303.97, 123.65),
    "ViT-L-14-336": (304.29, 123.65), "ViT-H-14": (632.08, 354.03), "ViT-g-14": (1012.65, 354.03),
    "ViT-bigG-14": (1844.91, 694.66), "convnext_base_w": (88.22, 91.16),
    "convnext_base_w_320": (88.22, 91.16), "convnext_large_d": (199.77, 152.0),
    "convnext_large_d_320": (199.77, 152.0), "convnext_xxlarge": (846.54, 354.03),
    "RN50": (38.32, 63.69), "RN101": (56.26, 63.43), "RN50x4": (87.14, 91.16),
    "RN50x16": (167.33, 123.65), "RN50x64": (420.38, 202.88)}
ENTRIES = {entry.name: entry for entry in published.MODELS}


@functools.lru_cache(maxsize=1)
def abstract(name):
    model = ENTRIES[name].model
    return parameters.abstract(
        lambda: maskclippp.MaskCLIPpp(model, by_head=False, rngs=parameters.Keys(0)))


def test_every_published_model_has_its_size_here():
    assert set(ENTRIES) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_the_count_of_parameters_is_the_published_one(name):
    leaves = {p: x for p, x in parameters.flatten(abstract(name)[1]).items()
              if not p.startswith(ABSENT) and "/running_" not in p}  # statistics do not count
    counts = [sum(parameters.count(x) for p, x in leaves.items() if p.startswith(part))
              for part in ("image/", "text/")]
    assert [f"{n / 1e6:.2f}" for n in counts] == [f"{n:.2f}" for n in SIZES[name]]


@pytest.mark.parametrize("name", SIZES)
def test_it_runs_at_its_size(name):
    build, shapes = abstract(name)
    image = ENTRIES[name].image
    side, cells = image.image_size, image.image_size // image.patch_size
    of = jax.ShapeDtypeStruct

    def run(params, picture, size, masks, ids):
        model = build(params)
        return model.encode_image(picture, size, masks, dense=True), model.encode_text(ids)

    features, words = jax.eval_shape(
        run, shapes, of((1, side, side, 3), jnp.uint8), of((1, 2), jnp.int32),
        of((1, 5, cells * cells), jnp.float32), of((3, 8), jnp.int32))
    width = image.embed_dim
    assert features.mask_embeddings.shape == (1, 5, width)
    assert features.image_embedding.shape == (1, width)
    assert features.patch_embeddings.shape == (1, cells * cells, width)
    assert words.shape == (3, width)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EVA02-CLIP-B-16", "ViT-B-32", "ViT-B-16", "convnext_base_w_320",
                                  "RN50"])
def test_a_small_one_runs_for_real(name):
    model, image = ENTRIES[name].model, ENTRIES[name].image
    make = lambda: maskclippp.MaskCLIPpp(model, rngs=parameters.Keys(0))
    build, _ = parameters.abstract(make)
    params = jax.jit(lambda: parameters.initialize(make))()
    side, cells = image.image_size, image.image_size // image.patch_size
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    size = np.array([[side, side], [side // 2, side - 9]], np.int32)
    masks = rng.random((2, 5, cells * cells)).astype(np.float32)
    found = jax.jit(lambda p, *a: build(p).encode_image(*a, dense=True))(
        params, picture, size, masks)
    assert np.isfinite(found.mask_embeddings).all() and np.isfinite(found.image_embedding).all()
    assert np.ptp(np.asarray(found.mask_embeddings), axis=1).max() > 0
