"""Which parameters learn, how fast, and AdamW as MaskCLIP++ uses it.

Every rule is a pattern on a parameter's path (`image/blocks/3/attention/query/kernel`); the first
that matches holds. `parameter_table` shows what came out.
"""

import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskclippp_jax import params as parameters
from maskclippp_jax.models import (
    clip_convnext,
    clip_resnet,
    clip_vit,
    dinotxt,
    eva_vit,
    maskclippp,
    pe,
    siglip,
    tips,
)

# Parameters without weight decay in every model; everything else decays, biases included.
NO_DECAY = (r"/\w*norm\d?/(scale|bias)$", r"^text/token_embedding$")
# In EVA-CLIP also tables and class token; OpenCLIP's decay.
EVA_NO_DECAY = (r"/position_table$", r"^image/class_token$")

# Last blocks that "attention" tunes beside a pooling head: as many as have mask tokens in the EVA
# models.
_BLOCKS_BESIDE_POOL = 3

# Stored statistics of batch norms: in every file and state, but nothing to learn.
_STATISTICS = ("/running_mean", "/running_var")


def image_tuning(config: maskclippp.ImageConfig) -> dict[str, tuple[str, ...]]:
    """What each type of tuning trains of an image tower: names and sets are the published ones.

    Of a SigLIP, PE-Core, TIPS or dino.txt, which nobody has tuned on masks yet, they are our own.

    The scale of the mask bias is trained by every type but "none".
    """
    kinds = {"none": (), "all": (r".*",)}
    match config:
        case eva_vit.EvaViTConfig():
            # Not the keys (unless one matrix holds all three), no biases, not the output matrix.
            matrices = "query|key|value" if config.fused_qkv else "query|value"
            kinds["attention"] = (rf"blocks/\d+/attention/({matrices})/kernel", r"position_table")
            # Not what no mask token's last attention needs.
            kinds["before_proj"] = (r"(patch_embed|class_token|position_table).*",
                                    rf"blocks/(?!{config.depth - 1}/).*",
                                    r"blocks/\d+/norm1/.*",
                                    r"blocks/\d+/attention/(query|key|value)/.*")
        case clip_vit.ClipViTConfig():
            kinds["attention"] = (r"blocks/\d+/attention/(query|key|value)/.*", r"position_table")
            kinds["before_proj"] = (r"(patch_embed|class_token|position_table|pre_norm).*",
                                    rf"blocks/(?!{config.depth - 1}/).*",
                                    r"blocks/\d+/(norm1|attention)/.*")
        case clip_convnext.ConvNeXtConfig():
            kinds["before_proj"] = (r"(stem|stages)/.*",)
            kinds["before_s4"] = (r"(stem|stages/[012])/.*",)
            kinds["after_s4"] = (r"(stages/3|norm|head)/.*",)
        case clip_resnet.ResNetConfig():
            # The norms of shortcuts do learn: the reference knows batch norms by their names.
            kinds["all_but_bn"] = (r"(?!.*/norm\d/).*",)
        case siglip.SigLIPConfig():
            kinds["attention"] = (_last_attention(config, "query|key|value"),
                                  r"pool/(query|key|value)/kernel", r"position_table")
            kinds["pool"] = (r"pool/.*",)
        case pe.PEConfig():
            kinds["all"] = (r"(?!head/bias).*",)  # which the published models do not have
            kinds["attention"] = (_last_attention(config, "query|value"),
                                  r"pool/(query|value)/kernel", r"position_table")
            kinds["pool"] = (r"pool/.*",)
        case tips.TIPSConfig():  # as in EVA-CLIP
            kinds["attention"] = (r"blocks/\d+/attention/(query|value)/kernel", r"position_table")
        case dinotxt.DinoTxtConfig():
            kinds["attention"] = (r"(head/)?blocks/\d+/attention/(query|value)/kernel",)
            # What learnt to speak to text, on a backbone that stayed as it was.
            kinds["head"] = (r"head/.*",)
    return {kind: (*patterns, r"mask_logit_scale") if patterns else ()
            for kind, patterns in kinds.items()}


def _last_attention(config: siglip.SigLIPConfig | pe.PEConfig, matrices: str) -> str:
    """Matrices of attention in the last blocks."""
    last = "|".join(str(config.depth - 1 - i) for i in range(_BLOCKS_BESIDE_POOL))
    return rf"blocks/({last})/attention/({matrices})/kernel"


def text_tuning(model: maskclippp.MaskCLIPppConfig) -> dict[str, tuple[str, ...]]:
    """The same of a text tower; whole paths, as CLIP's logit scale may be among them."""
    if isinstance(model.text, siglip.SigLIPTextConfig):
        logits = r"logit_(scale|bias)"
        return {"none": (), "all": (r"text/.*", logits),
                "attention": (r"text/blocks/\d+/attention/(query|key|value)/kernel",
                              r"text/position_table"),
                "proj": (r"text/(norm|head)/.*", logits)}
    if isinstance(model.text, tips.TIPSTextConfig):
        return {"none": (), "all": (r"text/.*", r"logit_scale"),
                "attention": (r"text/blocks/\d+/attention/(query|value)/kernel",),
                "proj": (r"text/norm/.*", r"logit_scale")}
    attention = (r"text/blocks/\d+/attention/qkv/kernel", r"text/position_table")
    if isinstance(model.image, eva_vit.EvaViTConfig):
        # The released EVA models trained norms and MLPs of the text tower under this name as well.
        attention += (r"text/blocks/\d+/(norm1|norm2|mlp)/.*",)
    return {"none": (), "all": (r"text/.*", r"logit_scale"), "attention": attention,
            "proj": (r"text/(norm/.*|projection)", r"logit_scale")}


def trainable_predicate(image: str, text: str, model: maskclippp.MaskCLIPppConfig
                        ) -> typing.Callable[[str], bool]:
    """Which parameter paths learn; the similarity head always does.

    Args:
      image: a key of `image_tuning`.
      text: a key of `text_tuning`.
      model: sizes of the model.
    """
    of_image, of_text = image_tuning(model.image), text_tuning(model)
    for what, kind, known in (("image", image, of_image), ("text", text, of_text)):
        if kind not in known:
            raise ValueError(f"tune.{what} is {kind!r}; it can be {', '.join(sorted(known))}")
    patterns = [r"similarity/.*", *of_text[text], *(f"image/{p}" for p in of_image[image])]
    whole = re.compile("|".join(f"(?:{p})" for p in patterns))
    return lambda path: whole.fullmatch(path) is not None and not path.endswith(_STATISTICS)


def learning_rate_multiplier(path: str, image_multiplier: float, text_multiplier: float) -> float:
    """The towers learn slowly; head, scale of the mask bias and CLIP's logit scale do not."""
    if path == "image/mask_logit_scale":
        return 1.0
    if path.startswith("image/"):
        return image_multiplier
    return text_multiplier if path.startswith("text/") else 1.0


def weight_decay(path: str, decay: float, model: maskclippp.MaskCLIPppConfig) -> float:
    patterns = NO_DECAY
    if isinstance(model.image, eva_vit.EvaViTConfig):
        patterns += EVA_NO_DECAY
    return 0.0 if any(re.search(p, path) for p in patterns) else decay


def schedule(settings, steps: int) -> optax.Schedule:
    """Base learning rate of each step: cosine to an end value, with linear warm-up.

    After the warm-up the cosine goes on where it would be without one (it is not shifted), and its
    end value belongs to step `steps`, which is never run; both as in detectron2's WarmupCosineLR.

    Args:
      settings: has learning_rate, end_learning_rate, warmup_steps, warmup_factor.
      steps: steps of the whole run.
    """
    end = settings.end_learning_rate / settings.learning_rate

    def rate(step):
        xp = jnp if isinstance(step, jax.Array) else np  # numpy: in float64, for people and checks
        cosine = lambda share: end + (1 - end) * (1 + xp.cos(np.pi * share)) / 2
        share = step / steps
        factor = cosine(share)
        if settings.warmup_steps:
            warm = settings.warmup_steps / steps
            target = cosine(warm)
            start = settings.warmup_factor
            rising = start + (target - start) * share / warm
            factor = xp.where(share + 1e-6 <= warm, rising, factor)
        return settings.learning_rate * factor

    return rate


def make_optimizer(settings, steps: int, trainable: parameters.Tree,
                   model: maskclippp.MaskCLIPppConfig) -> optax.GradientTransformation:
    """AdamW with the whole gradient clipped to one norm, rates and decay by path.

    The clip always acts (gradient norms are 1 to 700, the limit is 0.01). AdamW does not see a
    common factor, but its epsilon does, so neither may change alone.

    Args:
      settings: config.optimizer.
      steps: steps of the whole run.
      trainable: the trainable part of the parameters (arrays or shapes).
      model: sizes of the model.
    """
    by_path = lambda f: jax.tree_util.tree_map_with_path(
        lambda p, _: f(parameters.path_of(p)), trainable)
    rates = by_path(lambda path: learning_rate_multiplier(
        path, settings.image_multiplier, settings.text_multiplier))
    decays = by_path(lambda path: weight_decay(path, settings.weight_decay, model))

    def decay_and_scale(updates, params):
        return jax.tree.map(lambda u, p, rate, decay: -rate * (u + decay * p),
                            updates, params, rates, decays)

    return optax.chain(
        optax.stateless(lambda updates, _: clip_by_norm(updates, settings.clip_norm)),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),  # epsilon after the root
        optax.stateless(decay_and_scale),
        optax.scale_by_schedule(schedule(settings, steps)))


def clip_by_norm(updates: parameters.Tree, limit: float) -> parameters.Tree:
    """Scales all updates together so their norm is at most `limit` (torch's rule, with 1e-6)."""
    factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
    return jax.tree.map(lambda u: u * factor, updates)


TABLE_COLUMNS = ("parameters", "trainable_arrays", "trainable", "of", "learning_rate", "decay")


def parameter_table(shapes: parameters.Tree, is_trainable, settings,
                    model: maskclippp.MaskCLIPppConfig) -> list[tuple]:
    """Rows of `TABLE_COLUMNS` for people; numbers are counted where it does not say arrays.

    Parameters that differ only in the number of their block make one row.
    """
    rows: dict = {}
    for path, leaf in parameters.flatten(shapes).items():
        size = parameters.count(leaf)
        group = re.sub(r"(blocks|stages/\d+)/\d+", r"\1/*", path)
        row = rows.setdefault(group, [0, 0, 0, "-", "-"])
        row[2] += size
        if is_trainable(path):
            row[0] += 1
            row[1] += size
            multiplier = learning_rate_multiplier(
                path, settings.image_multiplier, settings.text_multiplier)
            row[3] = f"{settings.learning_rate * multiplier:g}"
            row[4] = f"{weight_decay(path, settings.weight_decay, model):g}"
    return [(group, *row) for group, row in rows.items()]
