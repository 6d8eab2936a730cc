"""CLIP ConvNeXt-L tuned on COCO panoptic, masks of FC-CLIP L, no ensemble.

    maskclippp evaluate --workdir=runs/coco_panoptic_convnext_l_fcclip_l \
        --config=eval/coco_panoptic_convnext_l_fcclip_l:ade20k_150 \
        --checkpoint=checkpoints/coco_panoptic_convnext_l.pth \
        --bundle=bundles/fcclip_l/ade20k_150
"""

from maskclippp_jax.configs import coco_panoptic_convnext_l as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_panoptic_convnext_l", "fcclip_l"
PUBLISHED = {
    "ade20k_150": dict(mIoU=35.6, PQ=26.5, AP=16.7),
}


def get_config(arg: str = "ade20k_150"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.fcclip(config, "l")
    return config
