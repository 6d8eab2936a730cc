"""EVA-CLIP checkpoints (github.com/baaivision/EVA, EVA-CLIP), and both towers' names there."""

from maskclippp_jax.weights.rules import Rule, conv, keep, leading_ones, linear


def image_rules(prefix: str) -> tuple[Rule, ...]:
    """The EVA02 image tower below a prefix such as `visual.`."""
    block, ours = f"{prefix}blocks.{{i}}", "image/blocks/{i}"
    return (
        Rule(f"{prefix}cls_token", "image/class_token", leading_ones(2)),
        Rule(f"{prefix}pos_embed", "image/position_table", leading_ones(1)),
        Rule(f"{prefix}patch_embed.proj.weight", "image/patch_embed/kernel", conv),
        Rule(f"{prefix}patch_embed.proj.bias", "image/patch_embed/bias"),
        Rule(f"{block}.norm1.weight", f"{ours}/norm1/scale"),
        Rule(f"{block}.norm1.bias", f"{ours}/norm1/bias"),
        Rule(f"{block}.attn.q_proj.weight", f"{ours}/attention/query/kernel", linear),
        Rule(f"{block}.attn.q_bias", f"{ours}/attention/query/bias"),
        Rule(f"{block}.attn.k_proj.weight", f"{ours}/attention/key/kernel", linear),
        Rule(f"{block}.attn.v_proj.weight", f"{ours}/attention/value/kernel", linear),
        Rule(f"{block}.attn.v_bias", f"{ours}/attention/value/bias"),
        Rule(f"{block}.attn.inner_attn_ln.weight", f"{ours}/attention/inner_norm/scale"),
        Rule(f"{block}.attn.inner_attn_ln.bias", f"{ours}/attention/inner_norm/bias"),
        Rule(f"{block}.attn.proj.weight", f"{ours}/attention/out/kernel", linear),
        Rule(f"{block}.attn.proj.bias", f"{ours}/attention/out/bias"),
        Rule(f"{block}.norm2.weight", f"{ours}/norm2/scale"),
        Rule(f"{block}.norm2.bias", f"{ours}/norm2/bias"),
        Rule(f"{block}.mlp.w1.weight", f"{ours}/mlp/w1/kernel", linear),
        Rule(f"{block}.mlp.w1.bias", f"{ours}/mlp/w1/bias"),
        Rule(f"{block}.mlp.w2.weight", f"{ours}/mlp/w2/kernel", linear),
        Rule(f"{block}.mlp.w2.bias", f"{ours}/mlp/w2/bias"),
        Rule(f"{block}.mlp.ffn_ln.weight", f"{ours}/mlp/norm/scale"),
        Rule(f"{block}.mlp.ffn_ln.bias", f"{ours}/mlp/norm/bias"),
        Rule(f"{block}.mlp.w3.weight", f"{ours}/mlp/w3/kernel", linear),
        Rule(f"{block}.mlp.w3.bias", f"{ours}/mlp/w3/bias"),
        Rule(f"{prefix}norm.weight", "image/norm/scale"),
        Rule(f"{prefix}norm.bias", "image/norm/bias"),
        Rule(f"{prefix}head.weight", "image/head/kernel", linear),
        Rule(f"{prefix}head.bias", "image/head/bias"),
    )


def text_rules(prefix: str) -> tuple[Rule, ...]:
    """The causal text tower below a prefix such as `text.`."""
    block, ours = f"{prefix}transformer.resblocks.{{i}}", "text/blocks/{i}"
    return (
        Rule(f"{prefix}token_embedding.weight", "text/token_embedding"),
        Rule(f"{prefix}positional_embedding", "text/position_table"),
        Rule(f"{block}.ln_1.weight", f"{ours}/norm1/scale"),
        Rule(f"{block}.ln_1.bias", f"{ours}/norm1/bias"),
        Rule(f"{block}.attn.in_proj_weight", f"{ours}/attention/qkv/kernel",
             linear),  # rows q, k, v
        Rule(f"{block}.attn.in_proj_bias", f"{ours}/attention/qkv/bias"),
        Rule(f"{block}.attn.out_proj.weight", f"{ours}/attention/out/kernel", linear),
        Rule(f"{block}.attn.out_proj.bias", f"{ours}/attention/out/bias"),
        Rule(f"{block}.ln_2.weight", f"{ours}/norm2/scale"),
        Rule(f"{block}.ln_2.bias", f"{ours}/norm2/bias"),
        Rule(f"{block}.mlp.c_fc.weight", f"{ours}/mlp/fc1/kernel", linear),
        Rule(f"{block}.mlp.c_fc.bias", f"{ours}/mlp/fc1/bias"),
        Rule(f"{block}.mlp.c_proj.weight", f"{ours}/mlp/fc2/kernel", linear),
        Rule(f"{block}.mlp.c_proj.bias", f"{ours}/mlp/fc2/bias"),
        Rule(f"{prefix}ln_final.weight", "text/norm/scale"),
        Rule(f"{prefix}ln_final.bias", "text/norm/bias"),
        Rule(f"{prefix}text_projection", "text/projection", keep),  # stored (in, out)
    )


RULES = (
    *image_rules("visual."),
    *text_rules("text."),
    Rule("logit_scale", "logit_scale"),
    Rule(r"visual\.(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)", None,
         why="the rotary angles follow from the grid"),
)

# A pre-trained CLIP has neither mask tokens nor a similarity head.
ABSENT = ("image/mask_logit_scale", "similarity/")
