"""CLIP ConvNeXt-B (convnext_base_w_320) tuned on COCO panoptic (arXiv 2412.11464).

    maskclippp train --config=coco_panoptic_convnext_b \
        --workdir=runs/coco_panoptic_convnext_b

20000 steps of 4 pictures of 1024 pixels; published: 2 to 4 hours on two GPUs of 24 GB. Published on
A-150 with masks of FC-CLIP B: mIoU 35.1, PQ 24.5, AP 13.6.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.convnext_base_w_320(num_templates=len(TEMPLATES_14))
    config.weights = "hf://laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg"
    config.templates = TEMPLATES_14
    common.tune_convnext(config)

    common.panoptic_family(config, 1024)
    common.on_coco_panoptic(config)
    config.eval.short_side = 512  # pixels of the picture the image tower sees
    return config.lock()
