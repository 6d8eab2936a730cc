"""Test-time augmentation: which versions of every picture there are, and the masks of each.

The label map is that of the mean, over versions of the loaded picture, of the scores of all
classes: at several sizes (`eval.short_sides`), each also mirrored (`eval.flip`). Our tower brings
every version to its own fixed size, so that sizes change little but the resampling.

A generator sees the versions as well and has other masks for each. So there is an ordinary bundle
for each, whose manifest tells the version; scripts in launch/export write them side by side in one
folder, which `evaluate` gets. True masks follow their picture.
"""

import typing

import ml_collections

from maskclippp_jax.data import bundle_writer, transforms
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.data.transforms import Version
from maskclippp_jax.evaluation.truth import Truth
from maskclippp_jax.runtime import storage

PLAIN = [Version()]  # no augmentation


def versions_of(settings: ml_collections.ConfigDict) -> list[Version]:
    """The versions that `config.eval` wants."""
    return transforms.versions_of(settings.short_sides, flip=settings.flip)


def check_truth(truth: Truth, versions: typing.Sequence[Version]) -> None:
    """Refuses versions where more than label maps would be measured.

    Raises:
      ValueError: data sets of segments or instances.
    """
    if versions != PLAIN and truth.parts != ["semantic"]:
        raise ValueError(f"{truth.what} has more than label maps, and only their scores can be "
                         f"averaged over versions of a picture ({_listed(versions)}); give a "
                         "semantic data set alone, or no eval.short_sides and eval.flip")


def open_bundles(folder: str, versions: typing.Sequence[Version]) -> list[Bundle]:
    """The bundle of each version.

    Args:
      folder: a bundle, or a folder of bundles.
      versions: those wanted; others may be there as well.

    Raises:
      FileNotFoundError: no bundle there, or one that is not finished.
      ValueError: a version is missing or there twice, or they are not of one generator.
    """
    path, found = storage.path(folder), {}
    parts = sorted(p.parent for p in path.glob(f"*/{bundle_writer.FOLDER}"))
    if not parts or (path / bundle_writer.FOLDER).is_dir():
        parts = [path]
    for bundle in map(Bundle, parts):
        if bundle.version in found:
            raise ValueError(f"{found[bundle.version].folder} and {bundle.folder} are both of the "
                             f"version {bundle.version}; remove one of them")
        found[bundle.version] = bundle
    missing = [v for v in versions if v not in found]
    if missing:
        raise ValueError(f"{folder} has masks of the version{'s' * (len(found) > 1)} "
                         f"{_listed(found)}, but not of {_listed(missing)}; export these as well "
                         "(launch/export, --short_sides and --flip), or choose among the ones "
                         "there with --config.eval.short_sides and --config.eval.flip")
    first, *others = (found[v] for v in versions)
    for other in others:
        for fact in ("generator", "preparation", "masks", "stride", "classes"):
            one, two = getattr(first, fact), getattr(other, fact)
            if one != two:
                raise ValueError(f"{first.folder} and {other.folder} differ in their {fact} "
                                 f"({_short(one)} and {_short(two)}); versions of a picture must "
                                 "come from one generator with one preparation, export them "
                                 "together")
    return [first, *others]


def folders_of(output: str, versions: typing.Sequence[Version]) -> dict[Version, str]:
    """Where to write the bundle of each version: those that `open_bundles` finds.

    Bundles that are finished are left out, unless all are.

    Raises:
      FileExistsError: all are finished.
    """
    if versions == PLAIN:
        bundle_writer.refuse_finished(output)
        return {versions[0]: output}
    folders = {v: f"{output}/{str(v).replace(' ', '_')}" for v in versions}
    is_finished = lambda folder: (storage.path(folder) / bundle_writer.MANIFEST).exists()
    left = {v: folder for v, folder in folders.items() if not is_finished(folder)}
    if not left:
        bundle_writer.refuse_finished(next(iter(folders.values())))
    return left


def describe(versions: typing.Sequence[Version]) -> str:
    """For a protocol."""
    return f"mean over {len(versions)}: {_listed(versions)}"


def _listed(versions: typing.Iterable[Version]) -> str:
    return ", ".join(map(str, versions))


def _short(fact: typing.Any) -> str:
    text = str(fact)
    return text if len(text) < 100 else f"{text[:100]} ..."
