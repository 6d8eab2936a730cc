"""CLIP under the names of transformers' `CLIPModel` (github.com/huggingface/transformers)."""

from maskclippp_jax.weights.rules import Rule, conv, linear, linear_rules, norm_rules


def clip_rules() -> tuple[Rule, ...]:
    """A whole pre-trained CLIP with a Vision Transformer."""
    attention = "image/blocks/{i}/attention"
    vision, words = "vision_model", "text_model"
    apart = {x: f"{words}.encoder.layers.{{i}}.self_attn.{x}_proj" for x in "qkv"}
    return (
        Rule(f"{vision}.embeddings.class_embedding", "image/class_token"),
        Rule(f"{vision}.embeddings.position_embedding.weight", "image/position_table"),
        Rule(f"{vision}.embeddings.patch_embedding.weight", "image/patch_embed/kernel", conv),
        *norm_rules(f"{vision}.pre_layrnorm", "image/pre_norm"),  # spelt so
        *_block(vision, "image"),
        *linear_rules(f"{vision}.encoder.layers.{{i}}.self_attn.q_proj", f"{attention}/query"),
        *linear_rules(f"{vision}.encoder.layers.{{i}}.self_attn.k_proj", f"{attention}/key"),
        *linear_rules(f"{vision}.encoder.layers.{{i}}.self_attn.v_proj", f"{attention}/value"),
        *norm_rules(f"{vision}.post_layernorm", "image/norm"),
        Rule("visual_projection.weight", "image/projection", linear),

        Rule(f"{words}.embeddings.token_embedding.weight", "text/token_embedding"),
        Rule(f"{words}.embeddings.position_embedding.weight", "text/position_table"),
        *_block(words, "text"),
        Rule(tuple(f"{name}.weight" for name in apart.values()),
             "text/blocks/{i}/attention/qkv/kernel", linear),
        Rule(tuple(f"{name}.bias" for name in apart.values()),
             "text/blocks/{i}/attention/qkv/bias"),
        *norm_rules(f"{words}.final_layer_norm", "text/norm"),
        Rule("text_projection.weight", "text/projection", linear),

        Rule("logit_scale", "logit_scale"),
        Rule(r"(vision|text)_model\.embeddings\.position_ids", None,
             why="the numbers 0, 1, 2, ..."),
    )


def _block(source: str, ours: str) -> tuple[Rule, ...]:
    """What both towers' blocks have in common: all but queries, keys and values."""
    block, path = f"{source}.encoder.layers.{{i}}", f"{ours}/blocks/{{i}}"
    return (
        *norm_rules(f"{block}.layer_norm1", f"{path}/norm1"),
        *linear_rules(f"{block}.self_attn.out_proj", f"{path}/attention/out"),
        *norm_rules(f"{block}.layer_norm2", f"{path}/norm2"),
        *linear_rules(f"{block}.mlp.fc1", f"{path}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.fc2", f"{path}/mlp/fc2"),
    )
