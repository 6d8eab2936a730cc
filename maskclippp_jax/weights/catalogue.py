"""All published files by their short names, and whether they are here."""

import difflib
import typing

from maskclippp_jax import configs
from maskclippp_jax.weights import hub, published, published_generators, published_tuned


class Row(typing.NamedTuple):
    name: str    # the short one; of a CLIP trained in several ways with its training
    kind: str    # "MaskCLIP++", "generator" or "CLIP"
    source: str  # a path for `hub.fetch`, or an address
    file: str    # what a download is called; of the hub's: ""

    @property
    def on_hub(self) -> bool:
        return hub.is_on_hub(self.source)

    def find(self) -> str | None:
        """Its local path, if it is here."""
        if self.on_hub:
            return hub.here(self.source)
        if not hub.is_address(self.source):
            return self.source  # shipped with the project
        return hub.downloaded(self.file, self.source.rpartition("/")[2])


def rows() -> list[Row]:
    """The tuned models, the generators, and the CLIPs that shipped configurations start from."""
    used = {file for name in configs.names() if "/" not in name
            for file in configs.read(name).weights.split(",")}
    return [row for row in all_rows()
            if row.kind != "CLIP" or row.source in used or row.file in used]


def all_rows() -> list[Row]:
    """The same, with every published CLIP; one of two files is two rows."""
    clips = [Row(f"{e.name}:{e.training}" if _is_ambiguous(e) else e.name, "CLIP", source,
                 "" if hub.is_on_hub(source) else source.rpartition("/")[2])
             for e in published.MODELS for source in e.source.split(",")]
    return [
        *(Row(e.name, "MaskCLIP++", e.source, e.file) for e in published_tuned.MODELS),
        *(Row(e.name, "generator", e.source, e.file) for e in published_generators.GENERATORS),
        *clips]


def nearest(name: str) -> str:
    """A hint for a name that is none: "; did you mean ...?", or nothing."""
    near = difflib.get_close_matches(name, [row.name for row in all_rows()], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _is_ambiguous(entry: published.Published) -> bool:
    return len({e.training for e in published.MODELS if e.name == entry.name}) > 1
