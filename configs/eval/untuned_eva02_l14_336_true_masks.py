"""Mask accuracy of the untuned EVA02-CLIP-L-14-336, mean over templates.

    maskclippp evaluate --workdir=runs/untuned \
        --config=eval/untuned_eva02_l14_336_true_masks:ade20k_150 --checkpoint=untuned
"""

from maskclippp_jax.configs.eval import coco_stuff_eva02_l14_336_true_masks as tuned

MODEL, MASKS = "untuned", None
PUBLISHED = tuned.PUBLISHED | {
    "ade20k_847": dict(mMaskAcc=35.2), "pascal_context_459": dict(mMaskAcc=44.8),
    "ade20k_150": dict(mMaskAcc=52.7), "pascal_context_59": dict(mMaskAcc=54.6),
    "coco_stuff_171": dict(mMaskAcc=45.0), "cityscapes_19": dict(mMaskAcc=44.9),
}
DOMAINS = {"general": dict(mMaskAcc=56.9), "earth monitoring": dict(mMaskAcc=60.5),
           "medical": dict(mMaskAcc=61.7), "engineering": dict(mMaskAcc=33.8),
           "agriculture and biology": dict(mMaskAcc=52.4)}
get_config = tuned.get_config
