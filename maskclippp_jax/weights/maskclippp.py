"""EVA02 MaskCLIP++ checkpoints of the public reference (github.com/HVision-NKU/MaskCLIPpp)."""

from maskclippp_jax.weights.eva_clip import image_rules, text_rules
from maskclippp_jax.weights.rules import Rule, linear

RULES = (
    *image_rules("visual_encoder.proxy."),
    Rule("visual_encoder.mask_logit_scale", "image/mask_logit_scale"),
    *text_rules("text_encoder.proxy."),
    Rule("text_encoder.logit_scale", "logit_scale"),
    Rule("psm.corr_proj_in.0.weight", "similarity/corr_in/kernel", linear),
    Rule("psm.corr_proj_in.0.bias", "similarity/corr_in/bias"),
    Rule("psm.corr_proj_out.0.weight", "similarity/corr_out/kernel", linear),
    Rule("psm.corr_proj_out.0.bias", "similarity/corr_out/bias"),
)

# The text tower and its scale are in the file only if they were tuned; then the pre-trained CLIP
# must be given as well.
PRETRAINED = ("text/", "logit_scale")
