"""EVA02-CLIP-L-14-336 tuned on COCO panoptic, image tower only (arXiv 2412.11464).

    maskclippp train --config=coco_panoptic_eva02_l14_336 \
        --workdir=runs/coco_panoptic_eva02_l14_336

20000 steps of 4 pictures of 448 pixels; published: 2 to 4 hours on two GPUs of 24 GB. Published on
A-150 with masks of FC-CLIP L: mIoU 36.6, PQ 27.3, AP 17.0.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.eva02_l14_336(num_templates=len(TEMPLATES_14))
    config.weights = "hf://QuanSun/EVA-CLIP/EVA02_CLIP_L_336_psz14_s6B.pt"
    config.templates = TEMPLATES_14

    common.panoptic_family(config, 448)
    common.on_coco_panoptic(config)
    config.eval.short_side = 392  # pixels of the picture the image tower sees
    return config.lock()
