"""Runs stored cases and compares; `parity` on the command line."""

import collections
import pathlib
import time
import typing

import jax
import jax.numpy as jnp
from rich.table import Table
from rich.text import Text

from maskclippp_jax.parity import (
    class_scores,
    encoders,
    eomt,
    eomt_pictures,
    generators,
    heads,
    mask_decoders,
    mask_generators,
    scoring,
    siglip,
    timm_layouts,
    towers,
    training,
)
from maskclippp_jax.parity.case import Absent, Case, NotBuilt
from maskclippp_jax.runtime import console

# What a case's `kind`, or the name of a file without one, runs. Any other case is "not built".
RUN = {
    "vit": encoders.image_tower, "conv": encoders.image_tower, "text": encoders.text_tower,
    "tokenizer": encoders.tokenizer, "preprocess": encoders.preprocess,
    "ckpt": encoders.checkpoint_layouts, "finetune": encoders.finetune_types,
    "psm": training.head, "loss": training.loss, "step": training.step,
    "trajectory": training.trajectory, "schedule": training.schedule,
    "optimizer_groups": training.optimizer_groups, "augment": training.augment,
    "synonym_max": class_scores.synonym_max, "category_overlap": class_scores.category_overlap,
    "ensemble_open": class_scores.ensemble, "ensemble_closed": class_scores.ensemble,
    "void": class_scores.void, "mask_accuracy_head": class_scores.mask_accuracy_head,
    "test_resize": heads.test_resize, "postprocess": heads.masks_to_output,
    "semantic": heads.semantic, "panoptic": heads.panoptic, "instance": heads.instance,
    "tta": heads.augmentation, "pipeline": heads.pipeline,
    "metric_mask_accuracy": scoring.metric_mask_accuracy,
    "metric_semantic": scoring.metric_semantic, "metric_panoptic": scoring.metric_panoptic,
    "offline_segmentor": generators.offline_segmentor,
    "generator_classes": generators.generator_classes,
    "eomt": eomt.network, "eomt_layouts": eomt.layouts, "eomt_trunk": eomt.trunk,
    "eomt_heads": eomt.heads, "eomt_e2e": eomt.whole,
    "eomt_position_table": eomt.position_table, "eomt_published_keys": eomt.published_keys,
    "eomt_preprocess": eomt_pictures.preprocess, "eomt_windows": eomt_pictures.windows,
    "eomt_postprocess": eomt_pictures.postprocess,
    "eomt_postprocess_windows": eomt_pictures.postprocess_windows,
    "position_encoding_sine": mask_decoders.position_encoding,
    "ms_deform_attn": mask_decoders.deformable_attention,
    "pixel_decoder_fcclip": mask_decoders.pixel_decoder,
    "pixel_decoder_m2f": mask_decoders.pixel_decoder,
    "transformer_decoder_fcclip": mask_decoders.transformer_decoder,
    "transformer_decoder_m2f": mask_decoders.transformer_decoder,
    "fcclip_head": mask_generators.head, "fcclip_e2e": mask_generators.whole,
    "mask2former_head": mask_generators.head, "mask2former_e2e": mask_generators.whole,
    "swin": mask_generators.swin, "generator_published_keys": mask_generators.published_keys,
    "metric_instance": scoring.metric_instance, "metric_gt_assign": scoring.oracle_assignment,
    "manifest": siglip.models, "ids": siglip.tokenizers,
    "published_shapes": siglip.published_shapes,
    "pe": towers.pe_core, "tips": towers.tips_model, "dinotxt": towers.dino_model,
    "pe_tokenizer": towers.pe_tokenizer, "tips_tokenizer": towers.tips_tokenizer,
    "pe_published_shapes": towers.pe_published_shapes,
    "tips_published_shapes": towers.tips_published_shapes,
    "dinotxt_published_shapes": towers.dino_published_shapes,
    "timm_eva": timm_layouts.model, "timm_siglip": timm_layouts.model,
    "timm_published_shapes": timm_layouts.published_shapes,
}


def compare(paths: typing.Sequence[str], dtype: str, *, require_all: bool) -> bool:
    """Runs all cases and prints a table of them.

    Args:
      paths: folders or files.
      dtype: "float32" or "bfloat16", arithmetic of the towers.
      require_all: whether cases, and parts, that are not built count as misses.

    Returns:
      Whether none was missed.

    Raises:
      FileNotFoundError: no case at one of the paths.
    """
    cases = [Case(file, jnp.dtype(dtype)) for path in paths for file in find(path)]
    table = Table(title=f"parity on {jax.devices()[0].device_kind}, {dtype}")
    # Widths that fit the 80 columns of a log; the name of the worst comparison gives way.
    table.add_column("case", no_wrap=True, min_width=24)
    table.add_column("result", no_wrap=True, min_width=9)
    table.add_column("checks", justify="right", min_width=6)
    table.add_column("worst", overflow="fold", min_width=12)
    table.add_column("/ limit", justify="right", min_width=7)
    table.add_column("s", justify="right", min_width=5)
    absent, results = {}, collections.Counter()
    for case in cases:
        start = time.monotonic()
        try:
            found = run(case)
        except NotBuilt as reason:
            results["not built"] += 1
            absent[case.name] = [str(reason)]
            table.add_row(case.name, Text("not built", "yellow"))
            continue
        parts = [c.what for c in found if isinstance(c, Absent)]
        checks = [c for c in found if not isinstance(c, Absent)]
        worst = max(checks, key=lambda c: c.ratio)
        result = "missed" if not worst.ratio <= 1 else "in part" if parts else "passed"
        results[result] += 1
        if parts:
            absent[case.name] = parts
        colour = {"missed": "red", "in part": "yellow", "passed": "green"}[result]
        table.add_row(case.name, Text(result, colour), f"{len(checks)}", worst.name,
                      f"{worst.ratio:.3f}", f"{time.monotonic() - start:.1f}")
    console.show(table)
    for name, parts in absent.items():
        console.say(f"not built: {name}: {', '.join(parts)}")
    console.say(", ".join(f"{results[r]} {r}" for r in ("passed", "in part", "missed",
                                                        "not built")))
    return not results["missed"] and not (require_all and absent)


def find(path: str) -> list[pathlib.Path]:
    """The case files at or below a path, in order.

    Raises:
      FileNotFoundError: there are none.
    """
    root = pathlib.Path(path)
    files = [root] if root.is_file() else sorted(root.rglob("*.json"))
    # A folder named as a case holds files that the case is about.
    about = lambda file: any((p.parent / f"{p.name}.json").is_file() for p in file.parents)
    files = [f for f in files if f == root or not about(f)]
    if not files:
        raise FileNotFoundError(f"no stored case (<case>.json) in {path}; give a folder that "
                                "has some")
    return files


def run(case: Case) -> list:
    """All comparisons of a case, and the parts of it that do not exist here (`Absent`).

    Raises:
      NotBuilt: of a kind, or a model, that does not exist here.
    """
    kind = case.spec.get("kind", case.name) if isinstance(case.spec, dict) else None
    if kind not in RUN:
        raise NotBuilt(f"kind {kind}" if kind else "no kind given")
    with jax.default_matmul_precision("highest"):
        checks = RUN[kind](case)
    if all(isinstance(c, Absent) for c in checks):
        raise NotBuilt("nothing in it that could be compared")
    return checks
