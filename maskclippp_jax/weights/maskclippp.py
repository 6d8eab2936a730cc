"""MaskCLIP++ checkpoints of the public reference (github.com/HVision-NKU/MaskCLIPpp)."""

from maskclippp_jax.weights import open_clip
from maskclippp_jax.weights.rules import Rule, linear, scalar

IMAGE_PREFIX = "visual_encoder.proxy."
HEAD_PREFIX = "psm."

# The similarity head of most models.
LINEAR_HEAD = (
    Rule("psm.corr_proj_in.0.weight", "similarity/corr_in/kernel", linear),
    Rule("psm.corr_proj_in.0.bias", "similarity/corr_in/bias"),
    Rule("psm.corr_proj_out.0.weight", "similarity/corr_out/kernel", linear),
    Rule("psm.corr_proj_out.0.bias", "similarity/corr_out/bias"),
)

# In place of the linear head, in the ConvNeXt models.
PSEUDO_TEXT = (
    Rule("psm.img_proj.weight", "similarity/image_projection/kernel", linear),
    Rule("psm.img2text.in_proj_weight", "similarity/qkv/kernel", linear),  # rows q, k, v
    Rule("psm.img2text.in_proj_bias", "similarity/qkv/bias"),
    Rule("psm.img2text.out_proj.weight", "similarity/out/kernel", linear),
    Rule("psm.img2text.out_proj.bias", "similarity/out/bias"),
    Rule("psm.ln_1.weight", "similarity/norm/scale"),
    Rule("psm.ln_1.bias", "similarity/norm/bias"),
    Rule("psm.logit_scale", "similarity/logit_scale"),
    Rule("psm.corrs_in.weight", "similarity/corr_in/kernel", linear),
    Rule("psm.corrs_in.bias", "similarity/corr_in/bias"),
    Rule("psm.corrs_out.weight", "similarity/corr_out/kernel", linear),
    Rule("psm.corrs_out.bias", "similarity/corr_out/bias"),
)

# The text tower and its scale are in the file only if they were tuned; then the pre-trained CLIP
# must be given as well.
PRETRAINED = ("text/", "logit_scale", "logit_bias")


def model_rules(image: tuple[Rule, ...], text_prefix: str,
                head: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """A whole tuned model.

    Args:
      image: the rules of its image tower, below `IMAGE_PREFIX`.
      text_prefix: "text_encoder.proxy." in models of EVA-CLIP, else "text_encoder.".
      head: of its similarity head, one of the tables above.
    """
    return (
        *image,
        Rule("visual_encoder.mask_logit_scale", "image/mask_logit_scale"),
        *open_clip.text_rules(text_prefix),
        Rule("text_encoder.logit_scale", "logit_scale", scalar),
        *head,
    )
