"""Compares this machine's results with stored ones: python -m maskclippp_jax.parity PATH...

Below each path every `<case>.json` is run on the default device, with the highest precision of
matrix products, and compared with the arrays beside it (results of the public PyTorch reference).
Exit code 1 on a miss. A check of a new accelerator as much as a test.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
from absl import flags
from rich.console import Console
from rich.table import Table

from maskclippp_jax import cli
from maskclippp_jax.parity_cases import encoders, evaluation, training
from maskclippp_jax.parity_cases.case import Case, NotBuilt

REQUIRE_ALL = flags.DEFINE_bool("require_all", False, "cases that are not built count as misses")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"],
                          "arithmetic of the towers; bfloat16 compares directions of embeddings")

# What a case's `kind` runs. A case of another kind is "not built".
RUN = {
    "vit": encoders.image_tower, "text": encoders.text_tower, "tokenizer": encoders.tokenizer,
    "preprocess": encoders.preprocess, "ckpt": encoders.checkpoint_layouts,
    "finetune": encoders.finetune_types,
    "psm": training.head, "loss": training.loss, "step": training.step,
    "trajectory": training.trajectory, "schedule": training.schedule,
    "optimizer_groups": training.optimizer_groups, "augment": training.augment,
    "synonym_max": evaluation.synonym_max, "category_overlap": evaluation.category_overlap,
    "test_resize": evaluation.test_resize, "mask_accuracy_head": evaluation.mask_accuracy_head,
    "metric_mask_accuracy": evaluation.metric_mask_accuracy,
    "metric_semantic": evaluation.metric_semantic,
}


def main(paths):
    if not paths:
        raise ValueError("got no path; give folders or files with stored cases (<case>.json)")
    cases = [Case(file, jnp.dtype(DTYPE.value)) for path in paths for file in find(path)]
    table = Table(title=f"parity on {jax.devices()[0].device_kind}, {DTYPE.value}")
    table.add_column("case", no_wrap=True)  # also in the 80 columns of a log
    for column in ("compared", "worst", "of tolerance", "seconds", ""):
        table.add_column(column, overflow="fold")
    passed = missed = absent = 0
    for case in cases:
        start = time.monotonic()
        try:
            checks = run(case)
        except NotBuilt as reason:
            absent += 1
            table.add_row(case.name, "", "", "", "", f"not built: {reason}")
            continue
        worst = max(checks, key=lambda c: c.ratio)
        good = worst.ratio <= 1
        passed, missed = passed + good, missed + (not good)
        table.add_row(case.name, f"{len(checks)}", worst.name, f"{worst.ratio:.3f}",
                      f"{time.monotonic() - start:.1f}", "ok" if good else "[red]MISS[/]")
    Console().print(table)
    print(f"{passed} passed, {missed} missed, {absent} not built")
    return int(missed > 0 or (REQUIRE_ALL.value and absent > 0))


def find(path: str) -> list[pathlib.Path]:
    """The case files at or below a path, in order.

    Raises:
      FileNotFoundError: there are none.
    """
    root = pathlib.Path(path)
    files = [root] if root.is_file() else sorted(root.rglob("*.json"))
    if not files:
        raise FileNotFoundError(f"no stored case (<case>.json) in {path}; give a folder that "
                                "has some")
    return files


def run(case: Case) -> list:
    """All comparisons of a case.

    Raises:
      NotBuilt: of a kind, or a model, that does not exist here.
    """
    kind = case.spec.get("kind") if isinstance(case.spec, dict) else None
    if kind not in RUN:
        raise NotBuilt(f"kind {kind}" if kind else "no kind given")
    with jax.default_matmul_precision("highest"):
        checks = RUN[kind](case)
    if not checks:
        raise NotBuilt("nothing in it that could be compared")
    return checks


if __name__ == "__main__":
    cli.run(main, positional=True)
