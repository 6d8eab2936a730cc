"""dino.txt on DINOv3 (github.com/facebookresearch/dinov3): the backbone's file, and the other one.

The backbone is also on the hub, under the names of transformers; `halves` joins the two files.
"""

from maskclippp_jax.weights.rules import (
    HEADS,
    Rule,
    conv_rules,
    joined_rules,
    leading_ones,
    linear,
    linear_rules,
    norm_rules,
)


def rules() -> tuple[Rule, ...]:
    """A whole model of the authors' two files."""
    block, ours = "blocks.{i}", "image/blocks/{i}"
    return (
        Rule("cls_token", "image/class_token", leading_ones(2)),
        Rule("storage_tokens", "image/registers", leading_ones(1)),
        *conv_rules("patch_embed.proj", "image/patch_embed"),
        *norm_rules(f"{block}.norm1", f"{ours}/norm1"),
        Rule(f"{block}.attn.qkv.weight", tuple(f"{ours}/attention/{x}/kernel" for x in HEADS),
             linear),
        # The authors multiply the middle third by 0, whatever is stored there.
        Rule(f"{block}.attn.qkv.bias",
             (f"{ours}/attention/query/bias", None, f"{ours}/attention/value/bias")),
        *linear_rules(f"{block}.attn.proj", f"{ours}/attention/out"),
        Rule(f"{block}.ls1.gamma", f"{ours}/scale1"),
        *norm_rules(f"{block}.norm2", f"{ours}/norm2"),
        *linear_rules(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"),
        Rule(f"{block}.ls2.gamma", f"{ours}/scale2"),
        *norm_rules("norm", "image/norm"),
        Rule("mask_token", None, why="stands for hidden patches in pre-training"),
        Rule(r"local_cls_norm\..*", None, why="a norm of pre-training"),
        Rule(r"rope_embed\.periods", None, why="the periods follow from the width of a head"),
        Rule(r"blocks\.\d+\.attn\.qkv\.bias_mask", None, why="always 1, 0, 1"),
        *_head_and_text_rules(),
    )


def transformers_rules() -> tuple[Rule, ...]:
    """The same with the backbone of transformers' `DINOv3ViTModel`."""
    block, ours = "layer.{i}", "image/blocks/{i}"
    return (
        Rule("embeddings.cls_token", "image/class_token", leading_ones(2)),
        Rule("embeddings.register_tokens", "image/registers", leading_ones(1)),
        *conv_rules("embeddings.patch_embeddings", "image/patch_embed"),
        *norm_rules(f"{block}.norm1", f"{ours}/norm1"),
        *(rule for x in HEADS for rule in linear_rules(
            f"{block}.attention.{x[0]}_proj", f"{ours}/attention/{x}")),
        *linear_rules(f"{block}.attention.o_proj", f"{ours}/attention/out"),
        Rule(f"{block}.layer_scale1.lambda1", f"{ours}/scale1"),
        *norm_rules(f"{block}.norm2", f"{ours}/norm2"),
        *linear_rules(f"{block}.mlp.up_proj", f"{ours}/mlp/fc1"),
        *linear_rules(f"{block}.mlp.down_proj", f"{ours}/mlp/fc2"),
        Rule(f"{block}.layer_scale2.lambda1", f"{ours}/scale2"),
        *norm_rules("norm", "image/norm"),
        Rule(r"embeddings\.mask_token", None, why="stands for hidden patches in pre-training"),
        *_head_and_text_rules(),
    )


def _head_and_text_rules() -> tuple[Rule, ...]:
    """The second file: the vision head and the text tower."""
    head, ours = "visual_model.head.blocks.{i}", "image/head/blocks/{i}"
    words, our_words = "text_model.backbone.blocks.{i}", "text/blocks/{i}"
    return (
        *norm_rules(f"{head}.norm1", f"{ours}/norm1"),
        *joined_rules(f"{head}.attn.qkv.", f"{ours}/attention"),  # without biases
        *linear_rules(f"{head}.attn.proj", f"{ours}/attention/out"),
        Rule(f"{head}.ls1.gamma", f"{ours}/scale1"),
        *norm_rules(f"{head}.norm2", f"{ours}/norm2"),
        *(rule for k in (1, 2, 3) for rule in linear_rules(f"{head}.mlp.w{k}", f"{ours}/mlp/w{k}")),
        Rule(f"{head}.ls2.gamma", f"{ours}/scale2"),
        *norm_rules("visual_model.head.ln_final", "image/head/norm"),
        Rule(r"visual_model\.backbone\..*", None, why="the backbone is read from its own file"),

        Rule("text_model.backbone.token_embedding.weight", "text/token_embedding"),
        Rule("text_model.backbone.positional_embedding", "text/position_table"),
        *norm_rules(f"{words}.attention_norm", f"{our_words}/norm1"),
        Rule(f"{words}.attention.qkv.weight", f"{our_words}/attention/qkv/kernel", linear),
        *linear_rules(f"{words}.attention.proj", f"{our_words}/attention/out"),
        *norm_rules(f"{words}.ffn_norm", f"{our_words}/norm2"),
        *linear_rules(f"{words}.feed_forward.fc1", f"{our_words}/mlp/fc1"),
        *linear_rules(f"{words}.feed_forward.fc2", f"{our_words}/mlp/fc2"),
        *norm_rules("text_model.backbone.ln_final", "text/norm"),
        Rule("text_model.head.linear_projection.weight", "text/projection", linear),
        Rule("logit_scale", "logit_scale", leading_ones(1)),
    )
