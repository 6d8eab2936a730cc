"""CLIP RN50x16 tuned on COCO panoptic, masks of FC-CLIP B, no ensemble.

    maskclippp evaluate --workdir=runs/coco_panoptic_rn50x16_fcclip_b \
        --config=eval/coco_panoptic_rn50x16_fcclip_b:ade20k_150 \
        --checkpoint=checkpoints/coco_panoptic_rn50x16.pth \
        --bundle=bundles/fcclip_b/ade20k_150
"""

from maskclippp_jax.configs import coco_panoptic_rn50x16 as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_panoptic_rn50x16", "fcclip_b"
PUBLISHED = {
    "ade20k_150": dict(mIoU=29.3, PQ=21.8, AP=11.1),
}


def get_config(arg: str = "ade20k_150"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.fcclip(config, "b")
    return config
