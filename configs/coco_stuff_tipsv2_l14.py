"""TIPSv2 L/14 tuned on COCO-Stuff, image tower only. This setting is ours, not a published one.

    maskclippp train --config=coco_stuff_tipsv2_l14 \
        --workdir=runs/coco_stuff_tipsv2_l14 --config.sentencepiece=tokenizer.model

The published recipe (arXiv 2412.11464) at 487.9 M parameters: 20000 steps of 4 pictures of 448
pixels, the size TIPSv2 was trained at. Time and numbers are not known yet. What learns is what
learns in the EVA models, whose blocks these resemble: queries, values and the position table, at
the same rates; class tokens and the factors of the blocks (LayerScale) stay. The text tower stays
as well, so that each name is encoded once; the templates are the nine of TIPS's own segmentation,
and its scale of about 200 is not cut. `tokenizer.model` is TIPS's vocabulary, one for all its
models.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_TIPS


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.tipsv2_l14(num_templates=len(TEMPLATES_TIPS))
    config.weights = "hf://google/tipsv2-l14"
    config.templates = TEMPLATES_TIPS

    common.semantic_family(config, 448)
    common.on_coco_stuff(config)
    config.eval.loader_min = 512   # pixels, shorter side of the loaded picture
    config.eval.short_side = 448   # pixels of the picture the image tower sees
    return config.lock()
