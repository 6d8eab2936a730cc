"""EVA01-CLIP-g-14-plus tuned on COCO panoptic, masks of FC-CLIP L, no ensemble.

    maskclippp evaluate --workdir=runs/coco_panoptic_eva01_g14_plus_fcclip_l \
        --config=eval/coco_panoptic_eva01_g14_plus_fcclip_l:ade20k_150 \
        --checkpoint=checkpoints/coco_panoptic_eva01_g14_plus.pth \
        --bundle=bundles/fcclip_l/ade20k_150
"""

from maskclippp_jax.configs import coco_panoptic_eva01_g14_plus as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_panoptic_eva01_g14_plus", "fcclip_l"
PUBLISHED = {
    "ade20k_150": dict(mIoU=36.8, PQ=27.7, AP=17.1),
}


def get_config(arg: str = "ade20k_150"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.fcclip(config, "l")
    return config
