"""CLIP ConvNeXt-XXL (convnext_xxlarge) tuned on COCO panoptic (arXiv 2412.11464).

    maskclippp train --config=coco_panoptic_convnext_xxl \
        --workdir=runs/coco_panoptic_convnext_xxl

20000 steps of 4 pictures of 1024 pixels. Published on A-150 with masks of FC-CLIP L: mIoU 36.4, PQ
27.1, AP 16.6. The trainable part, its gradient and both moments are 13.5 GB in float32: on chips of
16 GB share them out (--config.mesh.fsdp=4) and recompute blocks (--config.remat=full).
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.convnext_xxlarge(num_templates=len(TEMPLATES_14))
    config.weights = "hf://laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup"
    config.templates = TEMPLATES_14
    common.tune_convnext(config)
    config.optimizer.learning_rate = 1e-4

    common.panoptic_family(config, 1024)
    common.on_coco_panoptic(config)
    config.eval.short_side = 640  # pixels of the picture the image tower sees
    return config.lock()
