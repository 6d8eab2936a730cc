"""`load` of our model module, called as that of big_vision's two towers is."""

import re
import typing

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.models import maskclippp
from maskclippp_jax.models.siglip import SigLIPConfig
from maskclippp_jax.weights import big_vision, big_vision_file, rules
from maskclippp_jax.weights.source import Renamed, Source

# Parts of a model as big_vision calls them, and where ours begin.
_PARTS = {"img": "image/", "image": "image/", "txt": "text/", "text": "text/",
          "t": "logit_scale", "temperature": "logit_scale", "b": "logit_bias", "bias": "logit_bias"}
_PART_OF_FILE = re.compile(r".+:(img|txt|t|b)")


class Loaded(typing.NamedTuple):
    """What files hold of a model."""

    leaves: dict[str, typing.Any]  # by path
    missing: set[str]              # paths that keep their first values


def read_files(init_file: str | typing.Mapping[str, str], config: maskclippp.MaskCLIPppConfig,
               shapes: parameters.Tree) -> Loaded:
    """Reads a whole model from one file, or parts of it from one file each.

    Args:
      init_file: a file, see `weights.load_weights`; a part of one of big_vision, "x.npz:img"; or
        {"img": file, "txt": file, "t": file, "b": file}, any of them. What is in no file keeps
        its first values.
      config, shapes: of the model.

    Raises:
      ValueError: a file does not fit, or a part that no model has.
    """
    wanted = set(parameters.flatten(shapes))
    if isinstance(init_file, str):
        part = _PART_OF_FILE.fullmatch(init_file)
        if part is None:
            params, missing = weights.load_weights(init_file, config, shapes)
            return Loaded(parameters.flatten(params), set(missing))
        init_file = {part[1]: init_file}
    leaves: dict = {}
    for part, file in init_file.items():
        if part not in _PARTS:
            raise ValueError(f"model_init has the part {part!r}; it can have img, txt, t and b")
        if file:
            leaves |= _read_part(file, part, config, shapes)
    return Loaded(leaves, wanted - set(leaves))


def _read_part(file: str, part: str, config: maskclippp.MaskCLIPppConfig,
               shapes: parameters.Tree) -> dict:
    """The leaves of one part of a model, by path."""
    beginning, source = _PARTS[part], weights.read(file)
    layout = "big_vision"
    if not big_vision_file.matches(file):
        layout = weights.layout_of(source, file)
    elif beginning == "image/" and not any(name.startswith("img/") for name in source):
        source = Renamed(source, {name: f"img/{name}" for name in source})  # a ViT alone
    elif beginning == "text/" and not any(name.startswith("txt/") for name in source):
        source = Renamed(source, {name: f"txt/{name}" for name in source})
    table = weights.rules_for(layout, config)
    of_part = {path: shape for path, shape in parameters.flatten(shapes).items()
               if path.startswith(beginning)}
    if not of_part:
        raise ValueError(f"model_init has the part {part!r}, which this model has not")
    params, _ = rules.load(
        _only(source, table, beginning), table, parameters.unflatten(of_part),
        absent=weights.ABSENT, name=file)
    return parameters.flatten(params)


def _only(source: Source, table: typing.Sequence[rules.Rule], beginning: str) -> Source:
    """What a source holds of one part of a model."""
    names = rules.names_of(source, table, beginning)
    return Renamed(source, {name: name for name in names})


def kept(paths: typing.Iterable[str], config: maskclippp.MaskCLIPppConfig,
         dont_load: typing.Sequence[str], img_load_kw: typing.Mapping[str, typing.Any],
         txt_load_kw: typing.Mapping[str, typing.Any]) -> set[str]:
    """The paths that patterns name, which keep their first values.

    Args:
      paths: of parameters.
      config: of the model.
      dont_load: patterns of whole paths.
      img_load_kw, txt_load_kw: {"dont_load": patterns} of paths, or of big_vision's names, below
        the tower.

    Raises:
      ValueError: another keyword.
    """
    for settings in (img_load_kw, txt_load_kw):
        if set(settings) - {"dont_load"}:
            raise ValueError(f"model_load has {', '.join(sorted(set(settings) - {'dont_load'}))}; "
                             "a tower's loading takes dont_load")
    theirs = _names_of_big_vision(config, paths)
    found = set()
    for path in paths:
        names = [(path, dont_load)]
        for tower, their_tower, settings in (("image/", "img/", img_load_kw),
                                             ("text/", "txt/", txt_load_kw)):
            if path.startswith(tower):
                patterns = settings.get("dont_load", ())
                names += [(path.removeprefix(tower), patterns),
                          (theirs.get(path, "").removeprefix(their_tower), patterns)]
        if any(re.fullmatch(p, name) for name, patterns in names for p in _listed(patterns)):
            found.add(path)
    return found


def _listed(patterns: str | typing.Sequence[str]) -> typing.Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _names_of_big_vision(config: maskclippp.MaskCLIPppConfig, paths: typing.Iterable[str]
                         ) -> dict[str, str]:
    """{path: big_vision's name}, of a SigLIP."""
    if not isinstance(config.image, SigLIPConfig):
        return {}
    return rules.names_for(paths, big_vision.clip_rules(config))
