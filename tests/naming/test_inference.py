"""Naming masks: the whole chain of sizes, and programs that are not compiled twice."""

import jax
import jax.numpy as jnp
import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.models import maskclippp
from maskclippp_jax.naming import inference, postprocess
from maskclippp_jax.vocabulary import TEMPLATES_1, Vocabulary
from tests.compilations import compilations


class Settings:
    templates = TEMPLATES_1


def test_another_class_list_and_picture_size_compile_nothing(rng):
    model = maskclippp.MaskCLIPppConfig.quickstart(1)
    params = parameters.initialize(lambda: maskclippp.MaskCLIPpp(model, rngs=parameters.Keys(0)))
    name_masks = inference.make_namer(model, semantic=False)

    def run(classes, size):
        names = inference.embed_vocabulary(Settings, model, params, Vocabulary.from_string(classes))
        batch = dict(image=rng.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8),
                     segments=rng.integers(0, 3, (1, 64, 64)).astype(np.uint16),
                     labels=np.zeros((1, 8), np.int32))
        sizes = inference.sizes_of(dict(image_size=[size], segments_size=[size]), None, None)
        return name_masks(params, batch, sizes, names, (64, 64))

    with compilations() as compiled:
        first = run("red one;grey grass", (64, 64))
    assert "name_masks" in compiled
    with compilations() as compiled:
        second = run("blue two,red three;pink brick;green four;white five", (40, 60))
    assert not compiled
    np.testing.assert_allclose(np.asarray(first.scores)[..., :2].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(second.scores)[..., :4].sum(-1), 1, rtol=1e-5)
    assert not np.asarray(first.scores)[..., 2:].any()


def test_shorter_sides_follow_the_reference():
    sizes = np.array([[512, 683], [683, 512], [375, 1242]])
    assert inference.shorter_side_to(sizes, 800).tolist() == [[800, 1067], [1067, 800], [800, 2649]]
    assert inference.shorter_side_to(sizes, 392).tolist() == [[392, 522], [522, 392], [392, 1298]]
    assert inference.canvas_of(np.array([[392, 522]]), 14) == (392, 560)


def test_semantic_labels_equal_summing_resized_masks(rng):
    segments = rng.integers(0, 4, (5, 6)).repeat(6, 0).repeat(5, 1)  # [30, 30]
    probabilities = rng.random((3, 7)).astype(np.float32)
    resize = lambda mask, size: jax.image.resize(mask, size, "linear", antialias=False)
    scores = 0
    for n in range(3):
        mask = resize(resize(jnp.asarray(segments == n + 1, jnp.float32), (48, 40)), (30, 30))
        scores = scores + probabilities[n][:, None, None] * mask
    got = postprocess.segment_labels(jnp.asarray(segments), jnp.array([30, 30]),
                                      jnp.array([48, 40]), jnp.asarray(probabilities))
    top2 = np.sort(np.asarray(scores), 0)[-2:]
    clear = top2[1] - top2[0] > 1e-5  # or nothing there at all: class 0
    np.testing.assert_array_equal(np.asarray(got)[clear], np.asarray(scores).argmax(0)[clear])
    np.testing.assert_array_equal(np.asarray(got)[top2[1] == 0], 0)
    assert clear.mean() > 0.7
