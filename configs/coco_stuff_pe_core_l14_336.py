"""PE-Core L/14 of 336 pixels tuned on COCO-Stuff, image tower only. Ours, not a published setting.

    maskclippp train --config=coco_stuff_pe_core_l14_336 \
        --workdir=runs/coco_stuff_pe_core_l14_336

The published recipe (arXiv 2412.11464) at 671.1 M parameters: 20000 steps of 4 pictures of 448
pixels. Time and numbers are not known yet. Masks are pooled after the last block by a learnt query,
as in SigLIP, so what learns is what learns there: queries and values of that pooling and of the
last three blocks, and the position table; the query itself, the MLP behind it and the text tower
stay. Positions are whole numbers that do not shrink with a picture, so larger pictures reach
positions that the tower never saw: 448 pixels, as for EVA, are a third beyond 336.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_80


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.pe_core_l14_336(num_templates=len(TEMPLATES_80))
    config.weights = "hf://timm/PE-Core-L-14-336"
    config.templates = TEMPLATES_80

    common.semantic_family(config, 448)
    common.on_coco_stuff(config)
    config.eval.loader_min = 512   # pixels, shorter side of the loaded picture
    config.eval.short_side = 448   # pixels of the picture the image tower sees
    return config.lock()
