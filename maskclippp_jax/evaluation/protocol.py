"""The protocol of an evaluation: everything its numbers rest on, to be printed with them."""

import hashlib
import importlib.metadata
import pathlib
import subprocess
import typing

import ml_collections

from maskclippp_jax.data import records
from maskclippp_jax.evaluation import augmented
from maskclippp_jax.evaluation.truth import Truth
from maskclippp_jax.naming.generated import AnyBundle, Generated
from maskclippp_jax.vocabulary import Vocabulary


def describe(config: ml_collections.ConfigDict, truth: Truth,
             bundles: typing.Sequence[AnyBundle], *, missing: typing.Sequence[str] = (),
             oracle: str | None = None) -> dict:
    """Names and values.

    Args:
      config: the experiment.
      truth: what predictions are compared with.
      bundles: the masks of each version of the pictures; (): those of the ground truth.
      missing: pictures that a bundle lacks.
      oracle: "masks" or "classes" if one of them is perfect.
    """
    settings, bundle = config.eval, bundles[0] if bundles else None
    protocol = dict(
        dataset=settings.dataset, split=settings.split, pictures=len(truth.ids),
        masks=_folder_of(bundles) if bundles else "ground truth",
        vocabulary=_named(truth.vocabulary),
        seen_classes_from=_named(Vocabulary.load(settings.seen_vocabulary)),
        templates=len(config.templates), loader=f"{settings.loader_min}/{settings.loader_max}",
        short_side=settings.short_side, max_tokens=settings.max_tokens,
        mask_short_side=settings.mask_short_side, ensemble="off",
        mIoU="mean over classes in the ground truth", labels="semantic maps", dtype="float32",
        code=code_version())
    if "panoptic" in truth.parts and "semantic" not in [s.kind for s in truth.sources.values()]:
        protocol["labels"] = "classes of the panoptic segments"
    if truth.tiles:
        protocol["tiles"] = (f"of {len(truth.tiles)} pictures: label maps joined, each mask named "
                             "in the tile that shows most of it"
                             + (", panoptic segments and instances as cut"
                                if {"panoptic", "instances"} & set(truth.parts) else ""))
    versions = augmented.versions_of(settings)
    if versions != augmented.PLAIN:
        protocol["versions"] = augmented.describe(versions)
    if oracle:
        protocol["oracle"] = oracle
    if bundle is None:
        return protocol
    protocol["resizes"] = "masks classified as stored, then enlarged"
    if bundle.preparation:
        p = bundle.preparation
        protocol.update(
            mask_short_side=p.short_side, generator_loader=f"{p.loader_min}/{p.loader_max}",
            generator_multiple=p.multiple)
        if p.letterbox is not None:
            protocol["generator_letterbox"] = p.letterbox
    if settings.ensemble and oracle != "classes":
        protocol["ensemble"] = f"alpha {settings.alpha}, beta {settings.beta}"
        if bundle.kind == "embeddings":
            protocol["generator_text"] = ("of its own CLIP" if isinstance(bundle, Generated)
                                          else settings.generator_weights)
        if bundle.kind == "closed":
            lookup = truth.vocabulary.lookup_from(bundle.vocabulary)[:-1]
            known = (lookup < truth.vocabulary.num_classes).sum()
            protocol["ensemble_classes"] = (f"{known} of the generator's {len(lookup)} name a "
                                            "class here, the others have no say")
    protocol.update(
        stored_masks=bundle.masks + ", float32" * bundle.float32, generator_classes=bundle.kind,
        generator=", ".join(f"{k} {v}" for k, v in bundle.generator.items()),
        void=_void(bundle.kind, settings.objectness, oracle),
        missing_pictures=f"{len(missing)} count as missed" if missing else "none")
    if oracle == "classes":
        part = {"panoptic": "panoptic segments", "instances": "instances",
                "semantic": "regions of one class"}[truth.segments_of]
        protocol["recall"] = f"of {part}, crowds left out, each by the mask that fits best"
    if "panoptic" in truth.parts:
        protocol["thresholds"] = (f"score > {settings.object_threshold}, overlap >= "
                                  f"{settings.overlap_threshold}")
    if "instances" in truth.parts:
        rules = "COCO" if truth.instance_frequency is None else "LVIS"
        protocol["instances"] = f"{settings.num_instances} a picture, by the rules of {rules}"
    return protocol


def behind(config: ml_collections.ConfigDict, truth: Truth) -> dict:
    """What `describe` tells in numbers and names only, as hashes."""
    templates = hashlib.sha256(repr(tuple(config.templates)).encode()).hexdigest()[:16]
    return dict(texts_of_templates=templates, records={
        name: records.fingerprint(config.data_dir, name, config.eval.split)
        for name in truth.sources})


def code_version() -> str:
    """The commit of a checkout, or the version of the installed package."""
    folder = pathlib.Path(__file__).parents[2]
    if (folder / ".git").exists():
        try:
            done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"],
                                  cwd=folder, capture_output=True, text=True, timeout=10)
            if done.returncode == 0:
                return done.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            pass  # no git here, or a slow disk: the package's version is left
    try:
        return importlib.metadata.version("maskclippp_jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _void(kind: str, objectness: float, oracle: str | None) -> str:
    if kind == "none" or oracle == "classes":
        return "none"
    return "of the generator" + (
        f", less {objectness} of it times our largest class probability" if objectness else "")


def _folder_of(bundles: typing.Sequence[AnyBundle]) -> str:
    """Versions of pictures lie side by side in one folder."""
    if isinstance(bundles[0], Generated):
        return f"of {bundles[0].folder}, made for each picture"
    return str(bundles[0].folder if len(bundles) == 1 else bundles[0].folder.parent)


def _named(vocabulary: Vocabulary) -> str:
    digest = hashlib.sha256(repr(vocabulary.classes).encode()).hexdigest()[:8]
    return f"{vocabulary.name} ({digest})"
