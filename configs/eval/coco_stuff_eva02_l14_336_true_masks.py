"""Mask accuracy of EVA02-CLIP-L-14-336 tuned on COCO-Stuff.

    maskclippp evaluate --workdir=runs/mask_accuracy \
        --config=eval/coco_stuff_eva02_l14_336_true_masks:ade20k_150 \
        --checkpoint=checkpoints/coco_stuff_eva02_l14_336.pth --checkpoint=untuned

Ground-truth masks, no generator, no ensemble. `DOMAINS` has the published means over the data sets
of a domain of MESS; they are taken to be plain means, which the authors do not say.
"""

from maskclippp_jax.configs import coco_stuff_eva02_l14_336 as tuned
from maskclippp_jax.configs.eval import common
from maskclippp_jax.data import catalogue

MODEL, MASKS = "coco_stuff_eva02_l14_336", None
PUBLISHED = {
    "ade20k_847": dict(mMaskAcc=38.4), "pascal_context_459": dict(mMaskAcc=56.4),
    "ade20k_150": dict(mMaskAcc=67.0), "pascal_context_59": dict(mMaskAcc=85.2),
    "coco_stuff_171": dict(mMaskAcc=67.8), "cityscapes_19": dict(mMaskAcc=71.0),
    **{name: {} for name in catalogue.DATASETS
       if name.startswith("mess_") and not name.endswith("_corrected")},
}
DOMAINS = {"general": dict(mMaskAcc=67.9), "earth monitoring": dict(mMaskAcc=68.6),
           "medical": dict(mMaskAcc=74.7), "engineering": dict(mMaskAcc=50.3),
           "agriculture and biology": dict(mMaskAcc=65.5)}


def get_config(arg: str = "ade20k_150"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        if arg.startswith("mess_"):
            config.eval.split, = catalogue.DATASETS[arg].published
    return config
