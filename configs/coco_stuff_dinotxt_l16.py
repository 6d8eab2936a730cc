"""dino.txt on DINOv3 L/16 tuned on COCO-Stuff, its vision head only. Ours, not a published setting.

    maskclippp train --config=coco_stuff_dinotxt_l16 \
        --workdir=runs/coco_stuff_dinotxt_l16

The published recipe (arXiv 2412.11464) at 866.6 M parameters: 20000 steps of 4 pictures of 512
pixels. Time and numbers are not known yet. What learns is the head of two blocks, in which the mask
tokens run: it is what learnt to speak to text, on a backbone that stayed as it was, and so it stays
here; no gradient passes through it. The weights are two files behind a form, in the folder
`weights`: see `maskclippp weights "dino.txt L/16"`.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_80


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.dinotxt_l16(num_templates=len(TEMPLATES_80))
    config.weights = (
        "https://dl.fbaipublicfiles.com/dinov3/dinov3_vitl16/"
        "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth,"
        "https://dl.fbaipublicfiles.com/dinov3/dinov3_vitl16/"
        "dinov3_vitl16_dinotxt_vision_head_and_text_encoder-a442d8f5.pth")
    config.templates = TEMPLATES_80
    config.tune.image = "head"

    common.semantic_family(config, 512)
    common.on_coco_stuff(config)
    config.eval.loader_min = 512   # pixels, shorter side of the loaded picture
    config.eval.short_side = 512   # pixels of the picture the image tower sees
    return config.lock()
