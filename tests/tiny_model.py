"""The small model that the tests of the door from Python name with, and what they name."""

import numpy as np

from maskclippp_jax.data import scenes

CLASSES = ["red one", "grey grass", "brown brick, brown one", "blue three"]
NOTHING = 65535  # in label maps of these tests

# As small as it gets: what takes time is compiling.
TINY = '''
from maskclippp_jax.configs import quickstart
from maskclippp_jax.models import eva_vit, maskclippp, similarity, text
def get_config():
    config = quickstart.get_config().unlock()
    full = text.TextConfig.quickstart()
    config.model = maskclippp.MaskCLIPppConfig(
        eva_vit.EvaViTConfig(image_size=64, patch_size=8, width=16, depth=1, num_heads=2,
                             mlp_width=24, embed_dim=8, mask_layers=1),
        text.TextConfig(full.context_length, full.vocab_size, 16, 1, 2, 8, words=full.words),
        similarity.LinearSimilarityConfig(1, 8))
    config.weights = "random"
    return config.lock()
'''


def draw(number, side=64):
    """A picture and its label map; numbers are neither dense nor small."""
    scene = scenes.draw_scene(np.random.default_rng(number), size=side)
    _, slots = np.unique(scene.label, return_inverse=True)
    return scene.image, np.array([NOTHING, 7, 300, 41, 5, 6, 8, 9, 0, 11])[slots].astype(np.int32)


def as_stack(labels):
    return np.stack([labels == n for n in np.unique(labels) if n != NOTHING])
