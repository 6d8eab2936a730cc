"""EVA01-CLIP-g-14-plus tuned on COCO panoptic, image tower only (arXiv 2412.11464).

    maskclippp train --config=coco_panoptic_eva01_g14_plus \
        --workdir=runs/coco_panoptic_eva01_g14_plus

20000 steps of 4 pictures of 448 pixels. Published on A-150 with masks of FC-CLIP L: mIoU 36.8, PQ
27.7, AP 17.1. All parameters of the image tower are 4 GB in float32, those that learn 1 GB.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.eva01_g14_plus(num_templates=len(TEMPLATES_14))
    config.weights = "hf://QuanSun/EVA-CLIP/EVA01_CLIP_g_14_plus_psz14_s11B.pt"
    config.templates = TEMPLATES_14

    common.panoptic_family(config, 448)
    common.on_coco_panoptic(config)
    config.eval.short_side = 336  # pixels of the picture the image tower sees
    return config.lock()
