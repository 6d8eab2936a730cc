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

# What each type of tuning trains, per tower; the names and sets are the published ones.
IMAGE_TUNING = {
    "none": (),
    "all": (r"",),
    # Not the keys, not the biases of queries and values, not the output projection.
    "attention": (r"blocks/\d+/attention/(query|value)/kernel", r"position_table"),
    # All but the final norm and map, and what no mask token's last attention needs.
    "before_proj": (r"(patch_embed|class_token|position_table).*",
                    r"blocks/\d+/norm1/.*", r"blocks/\d+/attention/(query|key|value)/.*",
                    r"blocks/(?!{last}/)\d+/.*"),
}
TEXT_TUNING = {
    "none": (),
    # The released EVA models trained norms and MLPs of the text tower under this name as well.
    "attention": (r"blocks/\d+/(norm1|norm2|mlp)/.*", r"blocks/\d+/attention/qkv/kernel",
                  r"position_table"),
}

# Parameters without weight decay. Everything else decays, biases included.
NO_DECAY = (r"(^|/)(norm|norm1|norm2|inner_norm)/(scale|bias)$", r"/token_embedding$",
            r"/position_table$", r"/class_token$")


def trainable_predicate(image: str, text: str, depth: int) -> typing.Callable[[str], bool]:
    """Which parameter paths learn.

    The similarity head always learns; the scale of the mask bias learns unless the image tower's
    type is "none". CLIP's logit scale never does.

    Args:
      image: a key of IMAGE_TUNING.
      text: a key of TEXT_TUNING.
      depth: blocks of the image tower.
    """
    for what, kind, known in (("image", image, IMAGE_TUNING), ("text", text, TEXT_TUNING)):
        if kind not in known:
            raise ValueError(f"tune.{what} is {kind!r}; it can be {', '.join(sorted(known))}")
    patterns = [r"similarity/.*"]
    patterns += [f"text/{p}" for p in TEXT_TUNING[text]]
    patterns += [f"image/{p.replace('{last}', str(depth - 1))}" for p in IMAGE_TUNING[image]]
    if image == "all":
        patterns[-1] = r"image/.*"
    if image != "none":
        patterns.append(r"image/mask_logit_scale")
    whole = re.compile("|".join(f"(?:{p})" for p in patterns))
    return lambda path: whole.fullmatch(path) is not None


def learning_rate_multiplier(path: str, image_multiplier: float, text_multiplier: float) -> float:
    """The towers learn slowly; the head and the scale of the mask bias at the base rate."""
    if path == "image/mask_logit_scale":
        return 1.0
    if path.startswith("image/"):
        return image_multiplier
    return text_multiplier if path.startswith("text/") else 1.0


def weight_decay(path: str, decay: float) -> float:
    return 0.0 if any(re.search(p, path) for p in NO_DECAY) else decay


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


def make_optimizer(settings, steps: int,
                   trainable: parameters.Tree) -> optax.GradientTransformation:
    """AdamW with the whole gradient clipped to one norm, rates and decay by path.

    The clip always acts (gradient norms are 1 to 700, the limit is 0.01). AdamW does not see a
    common factor, but its epsilon does, so neither may change alone.

    Args:
      settings: config.optimizer.
      steps: steps of the whole run.
      trainable: the trainable part of the parameters (arrays or shapes).
    """
    by_path = lambda f: jax.tree_util.tree_map_with_path(
        lambda p, _: f(parameters.path_of(p)), trainable)
    rates = by_path(lambda path: learning_rate_multiplier(
        path, settings.image_multiplier, settings.text_multiplier))
    decays = by_path(lambda path: weight_decay(path, settings.weight_decay))

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


def parameter_table(shapes: parameters.Tree, is_trainable, settings) -> list[tuple]:
    """Rows (group, trainable arrays, trainable numbers, all numbers, rate, decay) for people.

    Parameters that differ only in the number of their block make one row.
    """
    rows: dict = {}
    for path, leaf in parameters.flatten(shapes).items():
        size = parameters.count(leaf)
        group = re.sub(r"blocks/\d+", "blocks/*", path)
        row = rows.setdefault(group, [0, 0, 0, "-", "-"])
        row[2] += size
        if is_trainable(path):
            row[0] += 1
            row[1] += size
            multiplier = learning_rate_multiplier(
                path, settings.image_multiplier, settings.text_multiplier)
            row[3] = f"{settings.learning_rate * multiplier:g}"
            row[4] = f"{weight_decay(path, settings.weight_decay):g}"
    return [(group, *row) for group, row in rows.items()]
