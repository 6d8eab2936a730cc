"""CLIP ConvNeXt-B tuned on COCO-Stuff, masks of MAFT+ B, ensemble.

    maskclippp evaluate --workdir=runs/coco_stuff_convnext_b_maftp_b \
        --config=eval/coco_stuff_convnext_b_maftp_b:ade20k_847 \
        --checkpoint=checkpoints/coco_stuff_convnext_b.pth \
        --bundle=bundles/maftp_b/ade20k_847
"""

from maskclippp_jax.configs import coco_stuff_convnext_b as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_stuff_convnext_b", "maftp_b"
PUBLISHED = {
    "ade20k_847": dict(mIoU=14.5),
    "pascal_context_459": dict(mIoU=18.7),
    "ade20k_150": dict(mIoU=35.4),
    "pascal_context_59": dict(mIoU=59.1),
    "pascal_voc_20": dict(mIoU=95.8),
}


def get_config(arg: str = "ade20k_847"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.maftp(config, "b")
        common.ensemble(config, alpha=0.6)
    return config
