"""EVA02-CLIP-B-16 tuned on COCO panoptic, image tower only (arXiv 2412.11464).

    maskclippp train --config=coco_panoptic_eva02_b16 \
        --workdir=runs/coco_panoptic_eva02_b16

20000 steps of 4 pictures of 512 pixels; published: 2 to 4 hours on two GPUs of 24 GB. Published on
A-150 with masks of FC-CLIP B: mIoU 33.8, PQ 24.4, AP 13.2.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.eva02_b16(num_templates=len(TEMPLATES_14))
    config.weights = "hf://QuanSun/EVA-CLIP/EVA02_CLIP_B_psz16_s8B.pt"
    config.templates = TEMPLATES_14

    common.panoptic_family(config, 512)
    common.on_coco_panoptic(config)
    config.eval.short_side = 384  # pixels of the picture the image tower sees
    return config.lock()
