"""MaskCLIP++ checkpoints of the public reference (github.com/HVision-NKU/MaskCLIPpp)."""

from maskclippp_jax.weights import open_clip
from maskclippp_jax.weights.rules import Rule, linear

IMAGE_PREFIX = "visual_encoder.proxy."

# The linear similarity head.
LINEAR_HEAD = (
    Rule("psm.corr_proj_in.0.weight", "similarity/corr_in/kernel", linear),
    Rule("psm.corr_proj_in.0.bias", "similarity/corr_in/bias"),
    Rule("psm.corr_proj_out.0.weight", "similarity/corr_out/kernel", linear),
    Rule("psm.corr_proj_out.0.bias", "similarity/corr_out/bias"),
)

# The text tower and its scale are in the file only if they were tuned; then the pre-trained CLIP
# must be given as well.
PRETRAINED = ("text/", "logit_scale")


def model_rules(image: tuple[Rule, ...], text_prefix: str) -> tuple[Rule, ...]:
    """A whole tuned model.

    Args:
      image: the rules of its image tower, below `IMAGE_PREFIX`.
      text_prefix: "text_encoder.proxy." in models of EVA-CLIP, else "text_encoder.".
    """
    return (
        *image,
        Rule("visual_encoder.mask_logit_scale", "image/mask_logit_scale"),
        *open_clip.text_rules(text_prefix),
        Rule("text_encoder.logit_scale", "logit_scale"),
        *LINEAR_HEAD,
    )
