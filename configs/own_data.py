"""EVA02-CLIP-B-16 tuned on pictures of your own; docs/own-data.md goes through it.

    maskclippp train --workdir=runs/mine \
        --config=own_data:dataset=mine,names=own/names.txt

The published recipe (arXiv 2412.11464) for 2000 steps of 4 pictures of 512 pixels, a tenth of the
published 2 to 4 hours on two GPUs of 24 GB. This setting is ours, not a published one.
"""

from ml_collections import config_dict

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config(arg: str = ""):
    arg = common.parse_arg(arg, dataset="mine",       # --name of `prepare folder`
                           names="own/names.txt")     # its --names
    config = common.base()
    config.model = MaskCLIPppConfig.eva02_b16(num_templates=len(TEMPLATES_14))
    config.weights = "hf://QuanSun/EVA-CLIP/EVA02_CLIP_B_psz16_s8B.pt"
    config.templates = TEMPLATES_14
    config.checkpoint_every = config.eval_every = 500
    config.keep_best = 1

    common.semantic_family(config, 512)
    config.train.dataset, config.train.split = arg.dataset, "train"
    config.train.num_masks = 64
    config.train.drop_smallest = True
    config.train.steps = 2000

    config.eval.dataset, config.eval.split = arg.dataset, "validation"
    config.eval.seen_vocabulary = arg.names
    config.eval.loader_min, config.eval.loader_max = 512, 2048  # sides of the loaded picture
    config.eval.short_side = 384        # pixels of the picture the image tower sees
    config.eval.mask_short_side = config_dict.placeholder(int)  # None: masks stay as they are
    return config.lock()
