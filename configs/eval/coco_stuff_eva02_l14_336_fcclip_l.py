"""EVA02-CLIP-L-14-336 tuned on COCO-Stuff, masks of FC-CLIP L, ensemble.

    maskclippp evaluate --workdir=runs/coco_stuff_eva02_l14_336_fcclip_l \
        --config=eval/coco_stuff_eva02_l14_336_fcclip_l:ade20k_847 \
        --checkpoint=checkpoints/coco_stuff_eva02_l14_336.pth \
        --bundle=bundles/fcclip_l/ade20k_847
"""

from maskclippp_jax.configs import coco_stuff_eva02_l14_336 as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_stuff_eva02_l14_336", "fcclip_l"
PUBLISHED = {
    "ade20k_847": dict(mIoU=15.4),
    "pascal_context_459": dict(mIoU=21.3),
    "ade20k_150": dict(mIoU=37.1, PQ=27.7, SQ=72.0, RQ=33.6, AP=17.3),
    "pascal_context_59": dict(mIoU=62.6),
    "pascal_voc_20": dict(mIoU=96.4),
}


def get_config(arg: str = "ade20k_847"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.fcclip(config, "l")
        common.ensemble(config, alpha=0.9)
    return config
