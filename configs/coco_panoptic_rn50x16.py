"""OpenAI's CLIP RN50x16 tuned on COCO panoptic (arXiv 2412.11464).

    maskclippp train --config=coco_panoptic_rn50x16 \
        --workdir=runs/coco_panoptic_rn50x16

with OpenAI's RN50x16.pt in the current folder (`convert --list` says where it is). 20000 steps of 4
pictures of 1024 pixels; published: 2 to 4 hours on two GPUs of 24 GB. Published on A-150 with masks
of FC-CLIP B: mIoU 29.3, PQ 21.8, AP 11.1.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.rn50x16(num_templates=len(TEMPLATES_14))
    config.weights = "RN50x16.pt"
    config.templates = TEMPLATES_14
    config.tune.image = "all"

    common.panoptic_family(config, 1024)
    common.on_coco_panoptic(config)
    config.eval.short_side = 512  # pixels of the picture the image tower sees
    return config.lock()
