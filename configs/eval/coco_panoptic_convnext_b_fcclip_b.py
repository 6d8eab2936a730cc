"""CLIP ConvNeXt-B tuned on COCO panoptic, masks of FC-CLIP B, no ensemble.

    maskclippp evaluate --workdir=runs/coco_panoptic_convnext_b_fcclip_b \
        --config=eval/coco_panoptic_convnext_b_fcclip_b:ade20k_150 \
        --checkpoint=checkpoints/coco_panoptic_convnext_b.pth \
        --bundle=bundles/fcclip_b/ade20k_150
"""

from maskclippp_jax.configs import coco_panoptic_convnext_b as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_panoptic_convnext_b", "fcclip_b"
PUBLISHED = {
    "ade20k_150": dict(mIoU=35.1, PQ=24.5, AP=13.6),
}


def get_config(arg: str = "ade20k_150"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.fcclip(config, "b")
    return config
