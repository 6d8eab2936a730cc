"""EVA02-CLIP-L-14-336 tuned on COCO panoptic, masks of FC-CLIP L, no ensemble.

    maskclippp evaluate --workdir=runs/coco_panoptic_eva02_l14_336_fcclip_l \
        --config=eval/coco_panoptic_eva02_l14_336_fcclip_l:ade20k_150 \
        --checkpoint=checkpoints/coco_panoptic_eva02_l14_336.pth \
        --bundle=bundles/fcclip_l/ade20k_150
"""

from maskclippp_jax.configs import coco_panoptic_eva02_l14_336 as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_panoptic_eva02_l14_336", "fcclip_l"
PUBLISHED = {
    "ade20k_150": dict(mIoU=36.6, PQ=27.3, AP=17.0),
}


def get_config(arg: str = "ade20k_150"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.fcclip(config, "l")
    return config
