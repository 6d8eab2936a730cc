"""What the rows of the published tables (arXiv 2412.11464) share.

A file beside this one is a row: a model, masks, and how they are put together; its argument is the
benchmark, a prepared data set: --config=configs/eval/x.py:ade20k_847. `MODEL` names the tuned model
(and the configuration that tunes it), `MASKS` the generator (None: ground-truth masks),
`PUBLISHED` has the published numbers in percent. `evaluate --suite=published` runs them all.
"""

import ml_collections

from maskclippp_jax.weights import published


def benchmark(config: ml_collections.ConfigDict, name: str, numbers: dict[str, dict]) -> None:
    """Evaluates on a benchmark of a row; A-150's segments and instances are data sets apart."""
    if name not in numbers:
        raise ValueError(f"this row has no benchmark {name!r}; it has {', '.join(numbers)}")
    sets = [name]
    if {"PQ", "mIoU"} <= numbers[name].keys():
        sets.append(f"{name}_panoptic")
    if "AP" in numbers[name]:
        sets.append(f"{name}_instance")
    config.eval.dataset = ",".join(sets)
    config.eval.split = "validation"


def fcclip(config: ml_collections.ConfigDict, size: str) -> None:
    """Masks of FC-CLIP B or L, or of another generator with its class head."""
    name, training = {"b": ("convnext_base_w_320", "laion_aesthetic_s13b_b82k_augreg"),
                      "l": ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup")}[size]
    clip = published.find(name, training)
    config.eval.generator, config.eval.generator_weights = clip.model, clip.source
    config.eval.seen_vocabulary = "coco_panoptic_133"  # what it was trained on
    config.eval.object_threshold, config.eval.overlap_threshold = 0.0, 0.8


def maftp(config: ml_collections.ConfigDict, size: str) -> None:
    """Masks of MAFT+ B or L, trained on COCO-Stuff, whose text tower is FC-CLIP's."""
    fcclip(config, size)
    config.eval.seen_vocabulary = "coco_stuff_171"


def ensemble(config: ml_collections.ConfigDict, alpha: float) -> None:
    """Joins the generator's opinion of seen classes; unseen ones are left to us."""
    config.eval.ensemble, config.eval.alpha, config.eval.beta = True, alpha, 1.0
