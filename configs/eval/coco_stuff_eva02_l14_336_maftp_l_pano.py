"""EVA02-CLIP-L-14-336 tuned on COCO-Stuff, masks of MAFT+ L trained on COCO panoptic, ensemble.

    maskclippp evaluate --workdir=runs/coco_stuff_eva02_l14_336_maftp_l_pano \
        --config=eval/coco_stuff_eva02_l14_336_maftp_l_pano:ade20k_150_panoptic \
        --checkpoint=checkpoints/coco_stuff_eva02_l14_336.pth \
        --bundle=bundles/maftp_l_pano/ade20k_150
"""

from maskclippp_jax.configs import coco_stuff_eva02_l14_336 as tuned
from maskclippp_jax.configs.eval import common

MODEL, MASKS = "coco_stuff_eva02_l14_336", "maftp_l_pano"
PUBLISHED = {
    "ade20k_150_panoptic": dict(PQ=28.1, SQ=74.0, RQ=34.7),
}


def get_config(arg: str = "ade20k_150_panoptic"):
    config = tuned.get_config()
    with config.unlocked():
        common.benchmark(config, arg, PUBLISHED)
        common.fcclip(config, "l")  # the same head and classes
        common.ensemble(config, alpha=0.9)
        config.eval.object_threshold, config.eval.overlap_threshold = 0.2, 0.7
    return config
