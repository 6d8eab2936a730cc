"""Best published model: EVA02-CLIP-L-14-336 tuned on COCO-Stuff, both towers (arXiv 2412.11464).

    maskclippp train --config=coco_stuff_eva02_l14_336 \
        --workdir=runs/coco_stuff_eva02_l14_336

20000 steps of 4 pictures, two thirds of one pass over COCO; published: 2 to 4 hours on two GPUs of
24 GB. Mask accuracy published for this setting: ADE20K-150 67.0 (52.7 untuned), COCO-Stuff 67.8
(45.0 untuned). mIoU with masks of MAFT+ L and ensemble: A-847 16.8, PC-459 23.9, A-150 38.2, PC-59
62.5, PAS-20 96.8.

The public reference trains with two pictures on each of two devices and starts the mask tokens of
every second picture from a wrong token; here each starts from its own class token. The loss is the
mean over the pictures of the whole batch.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_1


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.eva02_l14_336(num_templates=len(TEMPLATES_1))
    config.weights = "hf://QuanSun/EVA-CLIP/EVA02_CLIP_L_336_psz14_s6B.pt"
    config.templates = TEMPLATES_1  # one: the text tower encodes every class in every step
    config.tune.text = "attention"

    common.semantic_family(config, 448)
    common.on_coco_stuff(config)
    config.eval.loader_min = 512   # pixels, shorter side of the loaded picture
    config.eval.short_side = 392   # pixels of the picture the image tower sees
    return config.lock()
