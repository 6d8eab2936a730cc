"""Any published CLIP by its name, as `maskclippp convert --list` has it; untuned, or to be tuned.

    maskclippp predict photos --checkpoint=untuned --classes="cat;dog,puppy" \
        --generator=eomt-l-640 --config=published_clip:name=ViT-B-16,training=openai
    maskclippp train --config=published_clip:name=EVA02-CLIP-B-16 --workdir=runs/mine

The recipe and the templates are those of own_data, so is the number of patches along the shorter
side: 24, or more if the model was trained with more. This setting is ours, not a published one.
"""

import dataclasses

from ml_collections import config_dict

from maskclippp_jax.configs import common
from maskclippp_jax.models.similarity import LinearSimilarityConfig
from maskclippp_jax.vocabulary import TEMPLATES_14
from maskclippp_jax.weights import published


def get_config(arg: str = ""):
    arg = common.parse_arg(arg, name="EVA02-CLIP-B-16", training="")
    entry = published.find_by_name(arg.name, arg.training)
    config = common.base()
    config.model = dataclasses.replace(
        entry.model, similarity=LinearSimilarityConfig(len(TEMPLATES_14)))
    config.weights = entry.source
    config.templates = TEMPLATES_14

    patch = entry.image.patch_size
    side = patch * max(24, entry.image.image_size // patch)  # pixels
    common.semantic_family(config, side)
    common.on_coco_stuff(config)
    config.eval.loader_min, config.eval.loader_max = 512, 2048  # sides of the loaded picture
    config.eval.short_side = side       # pixels of the picture the image tower sees
    config.eval.mask_short_side = config_dict.placeholder(int)  # None: masks stay as they are
    return config.lock()
