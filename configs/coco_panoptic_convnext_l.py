"""CLIP ConvNeXt-L (convnext_large_d_320) tuned on COCO panoptic (arXiv 2412.11464).

    maskclippp train --config=coco_panoptic_convnext_l \
        --workdir=runs/coco_panoptic_convnext_l

20000 steps of 4 pictures of 1024 pixels; published: 2 to 4 hours on two GPUs of 24 GB. Published on
A-150 with masks of FC-CLIP L: mIoU 35.6, PQ 26.5, AP 16.7.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.convnext_large_d_320(num_templates=len(TEMPLATES_14))
    config.weights = "hf://laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
    config.templates = TEMPLATES_14
    common.tune_convnext(config)
    config.optimizer.learning_rate = 1e-4

    common.panoptic_family(config, 1024)
    common.on_coco_panoptic(config)
    config.eval.short_side = 640  # pixels of the picture the image tower sees
    return config.lock()
