"""EVA02-CLIP-L-14-336 tuned on COCO-Stuff, masks of MAFT+ L, ensemble.

    maskclippp evaluate --workdir=runs/coco_stuff_eva02_l14_336_maftp_l \
        --config=eval/coco_stuff_eva02_l14_336_maftp_l:ade20k_847 \
        --checkpoint=checkpoints/coco_stuff_eva02_l14_336.pth \
        --bundle=bundles/maftp_l/ade20k_847
"""

from maskclippp_jax.configs import coco_stuff_eva02_l14_336 as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_stuff_eva02_l14_336", "maftp_l"
PUBLISHED = {
    "ade20k_847": dict(mIoU=16.8),
    "pascal_context_459": dict(mIoU=23.9),
    "ade20k_150": dict(mIoU=38.2),
    "pascal_context_59": dict(mIoU=62.5),
    "pascal_voc_20": dict(mIoU=96.8),
}


def get_config(arg: str = "ade20k_847"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.maftp(config, "l")
        common.ensemble(config, alpha=0.9)
    return config
