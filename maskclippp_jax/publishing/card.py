"""The card of a published model: what it is, where it comes from, what is known of it."""

import json
import typing

import ml_collections
from etils import epath

from maskclippp_jax.data import catalogue
from maskclippp_jax.drawing import report
from maskclippp_jax.evaluation import protocol as protocols
from maskclippp_jax.publishing.measured import Measured
from maskclippp_jax.runs import checkpoint, ledger
from maskclippp_jax.runtime import typed
from maskclippp_jax.vocabulary import Vocabulary
from maskclippp_jax.weights import hub, published, released

_REFERENCE = "[public PyTorch reference](https://github.com/HVision-NKU/MaskCLIPpp)"
_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC-BY-4.0": "cc-by-4.0",
             "CC-BY-NC-4.0": "cc-by-nc-4.0", "Apple ML Research": "apple-amlr"}  # the hub's names
# Of the hub's index of results: title, the hub's name of the metric, and where its value is.
_METRICS = (
    ("mask accuracy", "accuracy", ("mask_accuracy",), "mMaskAcc"),
    ("mask accuracy, seen classes", "accuracy", ("mask_accuracy",), "seen"),
    ("mask accuracy, unseen classes", "accuracy", ("mask_accuracy",), "unseen"),
    ("mIoU", "mean_iou", ("semantic",), "mIoU"),
    ("mIoU, seen classes", "mean_iou", ("semantic",), "mIoU_seen"),
    ("mIoU, unseen classes", "mean_iou", ("semantic",), "mIoU_unseen"),
    ("PQ", "pq", ("panoptic", "all"), "PQ"), ("AP", "ap", ("instances",), "AP"))


class Base(typing.NamedTuple):
    """What a model was tuned from."""

    name: str
    licence: str | None = None
    repository: str | None = None  # of the hub


class Facts(typing.NamedTuple):
    """What a card tells of."""

    repo: str                     # owner/name
    step: int                     # of the checkpoint
    config: ml_collections.ConfigDict
    names: Vocabulary             # that it was tuned on
    run: epath.Path
    results: list[Measured]
    files: typing.Collection[str]  # of the repository
    licence: str | None           # the author's word; None: that of the base


def base_of(weights: str) -> Base:
    """The published CLIP that a configuration's weights are, if they are one."""
    if weights == "random":
        return Base("random weights")
    if released.last_part(weights) == released.last_part(published.QUICKSTART_WEIGHTS):
        return Base("the small CLIP of the quick start of maskclippp_jax", "Apache-2.0")
    for entry in published.MODELS:
        is_it = weights == entry.source or weights.startswith(f"{entry.source}/")
        file = released.last_part(entry.source.removeprefix(hub.SCHEME))
        if is_it or ("." in file and file not in hub.FILES
                     and file == released.last_part(weights.removeprefix(hub.SCHEME))):
            owner = entry.source.removeprefix(hub.SCHEME).split("/")[:2]
            return Base(f"{entry.name} ({entry.training})", entry.licence,
                        "/".join(owner) if hub.is_on_hub(entry.source) else None)
    return Base(released.last_part(weights), None,
                "/".join(weights.removeprefix(hub.SCHEME).split("/")[:2])
                if hub.is_on_hub(weights) else None)


def write(facts: Facts) -> str:
    """The content of README.md."""
    from huggingface_hub import ModelCardData  # slow to import

    base = base_of(facts.config.weights)
    licence = facts.licence or base.licence
    known = _LICENCES.get(licence, licence if licence in _LICENCES.values() else None)
    pictures = sorted(f for f in facts.files if f.startswith(f"{released.PICTURES}/"))
    data = ModelCardData(
        license=known or ("other" if licence else "unknown"),
        license_name=None if known else licence,
        library_name="maskclippp_jax", pipeline_tag="image-segmentation",
        tags=["maskclippp", "clip", "open-vocabulary-segmentation", "mask-classification", "jax"],
        base_model=base.repository, base_model_relation="finetune" if base.repository else None,
        model_name=facts.repo.split("/")[1], eval_results=_index(facts.results))
    parts = [f"# {facts.repo.split('/')[1]}", _summary(facts, base), _use(facts),
             "## What it was tuned from, and on", _table(_recipe(facts, base)), _results(facts),
             "## Pictures" if pictures else "",
             *(f"![Pictures with the names of their masks]({f})" for f in pictures),
             "## Licence", _licence(facts, base)]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _summary(facts: Facts, base: Base) -> str:
    return (f"A CLIP tuned on {_kind_of_masks(facts.config)}, so that it names any mask with any "
            "words: a MaskCLIP++ ([arXiv 2412.11464](https://arxiv.org/abs/2412.11464)) in JAX. "
            f"Tuned from {_plain(base.name)} on {_data(facts.config, licences=False)}.")


def _use(facts: Facts) -> str:
    words = json.dumps([", ".join(names) for names in facts.names.classes[:3]], ensure_ascii=False)
    lines = ["## Use", "With the package `maskclippp_jax`:",
             "```python\nimport maskclippp_jax as mc\n"
             f"model = mc.load(\"hf://{facts.repo}\")\n"
             f"result = model.name(\"photo.jpg\", \"masks.png\", {words})\n```",
             f"{_words(facts.config)} `{released.CONFIG}` is the whole configuration, as data, "
             f"templates of prompts included; `{released.NAMES}` has the "
             f"{facts.names.num_classes} classes it was tuned on."]
    if facts.config.sentencepiece and released.SENTENCEPIECE not in facts.files:
        lines.append("Its text tower needs a vocabulary that is not here: "
                     "`mc.load(..., sentencepiece=\"FILE\")`.")
    if released.REFERENCE in facts.files:
        lines.append(f"`{released.REFERENCE}` holds the same weights under the names of the "
                     f"{_REFERENCE}.")
    return "\n\n".join(lines)


def _words(config: ml_collections.ConfigDict) -> str:
    few = getattr(config.model.text, "words", None)
    return (f"Its text tower knows no other words than these: {' '.join(map(_plain, few))}." if few
            else "The words may be any.")


def _recipe(facts: Facts, base: Base) -> list[tuple[str, str]]:
    config, rates = facts.config, facts.config.optimizer
    rows = [
        ("tuned from", base.name + (f", {base.licence}" if base.licence else "")),
        ("tuned on", f"{_data(config)}; {facts.names.num_classes} classes"),
        ("masks", _kind_of_masks(config)),
        ("what learns", f"image tower: {config.tune.image}; text tower: {config.tune.text}"
         + _counts(facts.run)),
        ("steps", f"{facts.step} of {config.train.steps}, {config.train.batch_size} pictures each"),
        ("pictures", f"{config.train.family} family at {config.train.size} pixels"),
        ("learning rate", f"{rates.learning_rate:g} to {rates.end_learning_rate:g}; image tower "
         f"times {rates.image_multiplier:g}, text tower times {rates.text_multiplier:g}"),
        ("weight decay, clipping", f"{rates.weight_decay:g}, {rates.clip_norm:g}"),
        ("seed, arithmetic", f"{config.seed}, {config.dtype}"),
        ("templates", f"{len(config.templates)}, such as \"{config.templates[0]}\"")]
    if changes := checkpoint.data_changes(facts.run):
        rows.append(("its data changed on the way", ", ".join(changes)))
    if config.ema_decay:
        rows.append(("moving average", f"decay {config.ema_decay:g}; it is what is published"))
    if lines := ledger.read(facts.run / ledger.FILE):
        rows.append(("time", ledger.sentence(lines)))
    return [*rows, ("code", f"maskclippp_jax {protocols.code_version()}")]


class _Group(typing.TypedDict):
    """A line of parameters.json, as far as it is told."""

    trainable: int
    of: int


def _counts(run: epath.Path) -> str:
    file = run / "parameters.json"
    if not file.exists():
        return ""
    groups = typed.read(file, list[_Group])
    learns, whole = (sum(g[key] for g in groups) for key in ("trainable", "of"))
    return f"; {learns:,} of {whole:,} parameters"


def _data(config: ml_collections.ConfigDict, *, licences: bool = True) -> str:
    told = []
    for name in config.train.dataset.split(","):
        entry = catalogue.DATASETS.get(name)
        told.append(name if entry is None else entry.title + f" ({entry.licence})" * licences)
    return ", ".join(told)


def _kind_of_masks(config: ml_collections.ConfigDict) -> str:
    return "ground-truth masks" if config.train.masks == "ground_truth" else "degraded masks"


def _results(facts: Facts) -> str:
    if not facts.results:
        return ("## Results\n\nNone were published with it: nothing is known of its quality. "
                "`maskclippp evaluate` measures it.")
    text = ["## Results"]
    if any("intervals" in part for m in facts.results for part in m.model.values()
           if isinstance(part, dict)):
        text.append("In percent; in brackets the range of the middle 95 % of bootstrap samples "
                    "over pictures.")
    for m in facts.results:
        masks = m.protocol.get("masks", "")
        table, _, protocol = report.markdown(m.models, m.protocol).partition("\n\n")
        text += [f"### {_plain(str(m.protocol.get('dataset', '')))}; masks: {_plain(str(masks))}",
                 table, "<details><summary>protocol</summary>", protocol.strip(), "</details>"]
    return "\n\n".join(text)


def _index(results: list[Measured]) -> list | None:
    """The same numbers as data, for the hub."""
    from huggingface_hub import EvalResult

    found = []
    for m in results:
        names = str(m.protocol.get("dataset", "unknown"))
        titles = [catalogue.DATASETS[n].title if n in catalogue.DATASETS else n
                  for n in names.split(",")]
        for title, kind, way, key in _METRICS:
            part = m.model
            for step in way:
                part = part.get(step) or {}
            if part.get(key) is None:
                continue
            around = m.model[way[0]].get("intervals", {}).get(key)
            found.append(EvalResult(
                task_type="image-segmentation", dataset_type=names,
                dataset_name=", ".join(titles), dataset_split=m.protocol.get("split"),
                dataset_config=f"masks: {m.protocol.get('masks')}", dataset_args=m.protocol,
                metric_type=kind, metric_name=title, metric_value=round(part[key], 4),
                metric_args=dict(bootstrap_95=[round(x, 4) for x in around]) if around else None))
    return found or None


def _licence(facts: Facts, base: Base) -> str:
    if facts.licence:
        mine = f"{facts.licence}, says its author."
    elif base.licence:
        mine = f"That of the weights it was tuned from: {base.licence}."
    else:
        mine = "Unknown: that of the weights it was tuned from is not known here."
    return f"{_plain(mine)} What it was tuned on: {_data(facts.config)}."


def _table(rows: typing.Sequence[tuple[str, str]]) -> str:
    lines = [f"| {_plain(a)} | {_plain(b)} |" for a, b in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _plain(text: str) -> str:
    """Text of others that shall not become Markdown or HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
