"""PE-Core (github.com/facebookresearch/perception_models) under its authors' and timm's names."""

import numpy as np

from maskclippp_jax import params as parameters
from maskclippp_jax.weights import open_clip, timm
from maskclippp_jax.weights.rules import Rule, joined_rules, leading_ones, linear_rules, norm_rules

# Of the last map. timm's has one, with zeros in the published files; the authors' models have none.
HEAD_BIAS = "image/head/bias"


def image_rules(prefix: str, config) -> tuple[Rule, ...]:
    """The authors' image tower below a prefix such as `visual.`: OpenCLIP's and a pooling head."""
    del config
    pool, ours = f"{prefix}attn_pool", "image/pool"
    return (
        *open_clip.vit_trunk_rules(prefix),
        Rule(f"{pool}.probe", f"{ours}/probe", leading_ones(2)),
        *joined_rules(f"{pool}.attn.in_proj_", ours),
        *linear_rules(f"{pool}.attn.out_proj", f"{ours}/out"),
        *norm_rules(f"{pool}.layernorm", f"{ours}/norm"),
        *linear_rules(f"{pool}.mlp.c_fc", f"{ours}/mlp/fc1"),
        *linear_rules(f"{pool}.mlp.c_proj", f"{ours}/mlp/fc2"),
        Rule(f"{prefix}proj", "image/head/kernel"),  # stored (in, out)
    )


def timm_rules() -> tuple[Rule, ...]:
    """A whole PE-Core as OpenCLIP builds it around timm's tower."""
    trunk = "visual.trunk."
    return (
        Rule(f"{trunk}cls_token", "image/class_token", leading_ones(2)),
        *norm_rules(f"{trunk}norm_pre", "image/pre_norm"),
        *timm.vit_rules(),
        *linear_rules(f"{trunk}head", "image/head"),
        *open_clip.text_rules("text."),
        Rule("logit_scale", "logit_scale"),
    )


def without_head_bias(params: parameters.Tree) -> parameters.Tree:
    """Parameters that the authors' names can hold.

    Raises:
      ValueError: the bias they have no name for is not 0.
    """
    leaves = parameters.flatten(params)
    if np.any(leaves.pop(HEAD_BIAS)):
        raise ValueError("the authors' PE-Core has no bias in its last map, this one has; write it "
                         "under the names timm or ours")
    return parameters.unflatten(leaves)
