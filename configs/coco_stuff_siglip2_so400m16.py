"""SigLIP 2 So400m/16 tuned on COCO-Stuff, image tower only. Ours, not a published setting.

    maskclippp train --config=coco_stuff_siglip2_so400m16 \
        --workdir=runs/coco_stuff_siglip2_so400m16 --config.sentencepiece=tokenizer.model

The published recipe (arXiv 2412.11464) at 1136.6 M parameters: 20000 steps of 4 pictures of 512
pixels. Time and numbers are not known yet. `tokenizer.model` is Gemma's vocabulary, which SigLIP 2
reads; it lies beside the weights on the hub.
"""

from maskclippp_jax.configs import common
from maskclippp_jax.models.maskclippp import MaskCLIPppConfig
from maskclippp_jax.vocabulary import TEMPLATES_14


def get_config():
    config = common.base()
    config.model = MaskCLIPppConfig.siglip2_so400m16_512(num_templates=len(TEMPLATES_14))
    config.weights = "hf://google/siglip2-so400m-patch16-512"
    config.templates = TEMPLATES_14

    common.semantic_family(config, 512)
    common.on_coco_stuff(config)
    config.eval.loader_min = 512   # pixels, shorter side of the loaded picture
    config.eval.short_side = 512   # pixels of the picture the image tower sees
    return config.lock()
