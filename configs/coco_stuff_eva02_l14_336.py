"""Best published model: EVA02-CLIP-L-14-336 tuned on COCO-Stuff, both towers (arXiv 2412.11464).

    python -m maskclippp_jax.train --config=configs/coco_stuff_eva02_l14_336.py \
        --workdir=runs/coco_stuff_eva02_l14_336 --config.weights=EVA02_CLIP_L_336_psz14_s6B.pt

20000 steps of 4 pictures, two thirds of one pass over COCO. Mask accuracy published for this
setting: ADE20K-150 67.0 (52.7 untuned), COCO-Stuff 67.8 (45.0 untuned).

The public reference trains with two pictures on each of two devices and starts the mask tokens of
every second picture from a wrong token; here each starts from its own class token. The loss is the
mean over the pictures of the whole batch.
"""

from configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_1


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.eva02_l14_336(num_templates=len(TEMPLATES_1))
    config.templates = TEMPLATES_1  # one: the text tower encodes every class in every step
    config.tune.text = "attention"

    common.semantic_family(config, 448)
    config.train.dataset = "coco_stuff_171"
    config.train.split = "train"
    config.train.num_masks = 64  # semantic masks of one picture: at most one a class

    config.eval.dataset = "ade20k_150"
    config.eval.split = "validation"
    config.eval.seen_vocabulary = "coco_stuff_171"
    config.eval.loader_min, config.eval.loader_max = 512, 2048  # sides of the loaded picture
    config.eval.short_side = 392       # pixels of the picture the image tower sees
    config.eval.mask_short_side = 800  # masks pass through this size, as a generator's would
    return config.lock()
