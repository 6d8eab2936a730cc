"""How many pictures the memory takes at once, told before an evaluation starts."""

import typing

import jax
import ml_collections
import numpy as np
from absl import logging

from maskclippp_jax import config as configuration
from maskclippp_jax.models import maskclippp
from maskclippp_jax.naming import inference
from maskclippp_jax.runtime import devices, hosts

# Bytes of a picture while it is looked at: so many float32 for each pair of tokens of the heads
# that are computed together, and for each channel of a token. By the compiler's own account
# (`memory_analysis` of evaluations with 768 to 5376 patches) it is 1 to 2 times less; two batches
# may be at work at once.
_PAIRS, _CHANNELS = 2, 40
_SHARE = 0.7  # of the free memory that is taken


def bytes_of_picture(image: typing.Any, tokens: int, num_masks: int) -> int:
    """About what an evaluation takes for a picture.

    Args:
      image: sizes of the image tower.
      tokens: patches of the picture.
      num_masks: of it.
    """
    heads = 1 if configuration.heads_on() == "apart" else image.num_heads
    queries = tokens + num_masks
    return 4 * queries * (_PAIRS * heads * tokens + _CHANNELS * image.width)


def fitting(settings: ml_collections.ConfigDict, model: maskclippp.MaskCLIPppConfig,
            mesh: jax.sharding.Mesh) -> typing.Callable[[typing.Sequence, int], int]:
    """A function from the sizes of loaded pictures [n, 2] and their masks to a batch size.

    It is `eval.batch_size` or the number of pictures, a multiple of the devices; or less, and then
    it says so: the results are the same. Towers of convolutions, which compare no pairs of patches,
    keep theirs.
    """
    count, image = mesh.size, model.image

    def batch_size(sizes: typing.Sequence[tuple[int, int]], num_masks: int) -> int:
        wanted = -(-min(settings.batch_size, max(len(sizes), 1)) // count) * count
        free = devices.free_bytes(mesh.local_devices[0])
        if not len(sizes) or free is None or not hasattr(image, "depth"):
            return hosts.first_says(wanted)
        loaded = np.unique(np.array(sizes, np.int32).reshape(-1, 2), axis=0)
        network = inference.network_sizes(
            loaded, settings.short_side, settings.max_tokens, image.patch_size)
        largest = int(network.prod(-1).argmax())
        canvas = inference.canvas_of(network[largest][None], image.patch_size)
        tokens = canvas[0] * canvas[1] // image.patch_size**2
        # The devices of a CPU share one memory.
        shared = count if mesh.local_devices[0].platform == "cpu" else 1
        each = bytes_of_picture(image, tokens, num_masks) * shared
        most = max(1, int(_SHARE * free / each)) * count
        if most < wanted:
            height, width = loaded[largest]
            what = (f"pictures of {width}x{height} pixels, in which the image tower sees {tokens} "
                    "patches")
            smaller = ("; a smaller --config.eval.short_side lets it see fewer"
                       if each > _SHARE * free else "")
            logging.warning(
                "%d at a time (eval.batch_size) would take about %.1f GB for %s, and %.1f GB are "
                "free: %d at a time%s", wanted, wanted / count * each / 1e9, what, free / 1e9,
                most, smaller)
        return hosts.first_says(min(most, wanted))

    return batch_size
