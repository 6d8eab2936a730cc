"""Writes a model as a folder that runs without this package: ONNX, or StableHLO of `jax.export`.

    manifest.json              what a caller must do before and after, as data; sizes and versions
    encoder_448x448.onnx       pictures and masks -> embeddings of masks (or .stablehlo)
    classifier.onnx            these -> scores of the classes of a vocabulary
    generator.onnx             EoMT, if there is one: pictures -> masks ...
    classifier_of_generated.onnx   ... and scores that take its opinion into account
    *.safetensors              the parameters of each; the graphs of ONNX point into them
    run.py                     an example without this package

Every program is run before the folder appears, and compared with ours.
"""

import dataclasses
import importlib.util
import json
import numbers
import pathlib
import shutil
import tempfile
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from PIL import Image

from maskclippp_jax import config as configuration, weights as tensors
from maskclippp_jax.export import manifest, programs
from maskclippp_jax.export.programs import Program
from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.naming import inference, segmenter
from maskclippp_jax.naming.generator import Generator
from maskclippp_jax.naming.namer import Namer, Words
from maskclippp_jax.runtime import storage
from maskclippp_jax.weights import files

_NEEDED = {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}
FORMATS = tuple(_NEEDED)
# Largest difference of any number from ours in float32, where the largest is 1 or less, else as a
# share of it. Rounding alone makes 1e-6 of the first; half numbers have 11 bits, bfloat16 8.
TOLERANCES = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
_PICTURES = ((1, 3, (120, 160)), (2, 5, (75, 60)))  # of the check: pictures, masks, size


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What is to be written.

    Attributes:
      format: one of `FORMATS`.
      sizes: (width, height) of canvases of the encoder, pixels; (): a broad and a high one of 16:9,
        in which pictures of up to this shape have the shorter side of the configuration.
      num_masks: of every picture; None: any number.
      batch: pictures at once; None: any number.
      dtype: of the arithmetic and of matrices, one of `TOLERANCES`.
    """

    format: str = "onnx"
    sizes: typing.Sequence[tuple[int, int]] = ()
    num_masks: int | None = None
    batch: int | None = None
    dtype: str = "float32"

    def check(self) -> None:
        """Raises ValueError for what cannot be, before any model is loaded."""
        if self.format not in FORMATS:
            raise ValueError(f"got the format {self.format!r}, wanted {' or '.join(FORMATS)}")
        if self.dtype not in TOLERANCES:
            raise ValueError(f"got dtype={self.dtype!r}, wanted {', '.join(TOLERANCES)}")
        if self.format == "onnx" and self.dtype == "bfloat16":
            raise ValueError("onnxruntime has no bfloat16 on a CPU, where the result is checked; "
                             "take float16")
        for what, number in (("masks", self.num_masks), ("batch", self.batch)):
            if number is not None and not _is_count(number):
                raise ValueError(f"got {number!r} for {what}, wanted a whole number of at least 1, "
                                 "or none for any number")
        is_pair = lambda size: (isinstance(size, list | tuple) and len(size) == 2
                                and all(map(_is_count, size)))
        if not isinstance(self.sizes, list | tuple) or not all(map(is_pair, self.sizes)):
            raise ValueError(f"got sizes={self.sizes!r}, wanted pairs of width and height in whole "
                             "pixels, such as [(448, 336), (336, 448)]")
        missing = [n for n in _NEEDED[self.format] if importlib.util.find_spec(n) is None]
        if missing:
            raise ValueError(f"the format {self.format} needs {' and '.join(missing)}; "
                             "pip install 'maskclippp_jax[onnx]' brings all")


def _is_count(number: typing.Any) -> bool:
    return (isinstance(number, numbers.Integral) and not isinstance(number, bool)
            and number >= 1)


class Checked(typing.NamedTuple):
    """What the check of a program found."""

    difference: float  # see `TOLERANCES`
    seconds: float     # of all cores together, for one picture, once compiled
    ours: float        # the same of our own program


def write(namer: Namer, generator: Generator | None, words: Words, folder: storage.Name,
          wishes: Wishes = Wishes(), *, overwrite: bool = False) -> dict[str, Checked]:
    """Writes the folder whole or not at all; see the head of this file.

    Args:
      namer: the model.
      generator: an EoMT with masks of whole pictures, or None.
      words: the vocabulary of the classifier.
      folder: to be made.
      wishes: see there.
      overwrite: whether a folder that exists is replaced.

    Returns:
      What the check found, of each program by name.

    Raises:
      FileExistsError: the folder exists.
      ValueError: what cannot be exported, or a program that gives other numbers.
    """
    check(namer, generator, wishes)
    target = check_target(folder, overwrite=overwrite)
    made = _programs(namer, generator, words, wishes)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        checked, rng = {}, np.random.default_rng(0)
        previous: dict[str, np.ndarray] = {}
        for exact, program in made:
            _write_program(temporary, program, wishes)
            checked[program.name] = _check(temporary, program, exact, wishes, rng, previous)
            worst = checked[program.name].difference
            if not worst <= TOLERANCES[wishes.dtype]:  # nor if it is no number
                raise ValueError(
                    f"the exported {program.name} differs from ours by {worst:.2g}, more than the "
                    f"{TOLERANCES[wishes.dtype]} of {wishes.dtype}; nothing was written"
                    + ("" if wishes.dtype == "float32" else "; take float32"))
        content = manifest.facts(namer, generator, words, wishes, [p for _, p in made], checked)
        (temporary / "manifest.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        shutil.copy(pathlib.Path(__file__).with_name("run.py"), temporary / "run.py")
        temporary.chmod(0o777 & ~_umask(temporary))
        storage.sync_all(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return checked


def check(namer: Namer, generator: Generator | None, wishes: Wishes) -> None:
    """Raises ValueError for wishes, models and generators that `write` refuses."""
    wishes.check()
    tokens = namer.config.eval.max_tokens
    if tokens:
        raise ValueError(f"{namer.title} sees pictures of any shape as at most {tokens} patches "
                         "(NaFlex), which has no exported form; set --config.eval.max_tokens=0, "
                         "and it sees them by their shorter side")
    if generator is not None and not isinstance(generator.config, EoMTConfig):
        raise ValueError(f"{generator.title} cannot be exported, of generators only an EoMT can; "
                         "leave --generator out and give its masks to the encoder, or take "
                         "eomt-l-640")
    canvases_of(wishes.sizes, namer.short_side, namer.model.image.patch_size)


def check_target(folder: storage.Name, *, overwrite: bool) -> pathlib.Path:
    """Where the folder will be.

    Raises:
      FileExistsError: something is there already.
      ValueError: no folder of a disk, or one that is no export and so is not replaced.
    """
    if storage.on_bucket(folder):
        raise ValueError(f"--output is {folder}, wanted a folder here; copy it to the bucket when "
                         "it is there")
    target = pathlib.Path(storage.path(folder))
    if target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists; give another --output, or --overwrite")
    if target.exists() and not all((target / n).is_file() for n in ("manifest.json", "run.py")):
        raise ValueError(f"{folder} is no folder that this command wrote, so --overwrite does not "
                         "replace it; give another --output")
    return target


def _programs(namer: Namer, generator: Generator | None, words: Words, wishes: Wishes
              ) -> list[tuple[Program, Program]]:
    """All programs: as they are in float32, and as they are written."""
    config, model, params = namer.config, namer.model, namer.params
    short_side, cell = namer.short_side, model.image.patch_size
    canvases = canvases_of(wishes.sizes, short_side, cell)
    free = dict(num_masks=int(wishes.num_masks or 0) or "masks",
                batch=int(wishes.batch or 0) or "batch")
    # Ours as it runs on this machine, and what is written, which is one for all.
    forms = (dict(dtype=jnp.float32, heads=configuration.heads_on()),
             dict(dtype=jnp.dtype(wishes.dtype), heads="together"))
    found = [tuple(programs.encoder(model, params, canvas, short_side, **free, **form)
                   for form in forms) for canvas in canvases]
    synonyms = synonyms_of(words.vocabulary.synonym_class, words.vocabulary.num_classes)
    tokens = [canvas[0] * canvas[1] // cell**2 for canvas in canvases]
    classifier = lambda **kw: (programs.classifier(
        model, params, words.names, synonyms, tokens=tokens, **free, **kw),) * 2
    found.append(classifier())
    if generator is not None:
        found.append(tuple(programs.generator(generator.config, generator.params,
                                              batch=free["batch"], **form) for form in forms))
        found.append(classifier(ensemble=_ensemble(config, words, generator)))
    return found


def canvases_of(sizes: typing.Sequence[tuple[int, int]], short_side: int, cell: int
                ) -> list[tuple[int, int]]:
    """(height, width) of the encoder's canvases.

    Raises:
      ValueError: one that is no multiple of a cell.
    """
    if not sizes:
        short, long = (-(-side // cell) * cell for side in (short_side, short_side * 16 / 9))
        return [(int(short), int(long)), (int(long), int(short))]
    for width, height in sizes:
        if width % cell or height % cell:
            near = [max(1, round(side / cell)) * cell for side in (width, height)]
            raise ValueError(f"got --size={width}x{height}, wanted multiples of the {cell} pixels "
                             f"of a cell of this model, such as {near[0]}x{near[1]}")
    return list(dict.fromkeys((int(height), int(width)) for width, height in sizes))


def synonyms_of(synonym_class: np.ndarray, num_classes: int) -> np.ndarray:
    """[C, K] int32: the names of each class, the first one again where there are fewer."""
    rows = [np.flatnonzero(synonym_class == c) for c in range(num_classes)]
    most = max(map(len, rows))
    return np.stack([np.pad(r, (0, most - len(r)), constant_values=r[0]) for r in rows]
                    ).astype(np.int32)


def _ensemble(config, words: Words, generator: Generator) -> programs.Ensemble:
    """How the generator's opinion counts, as `Model.segment` has it."""
    vocabulary, counts = words.vocabulary, config.eval.ensemble
    seen = np.zeros(vocabulary.num_classes, bool)
    if counts:
        seen = inference.seen_classes(config, vocabulary)
    opinion = segmenter.opinion_in(config.eval, vocabulary, seen, generator,
                                   vocabulary.num_classes, must_share=False)
    return programs.Ensemble.of(opinion.lookup, opinion.weights, counts, float(opinion.objectness))


# ---- Files --------------------------------------------------------------------------------------


def _write_program(folder: pathlib.Path, program: Program, wishes: Wishes) -> None:
    weights = folder / f"{program.weights}.safetensors"
    if not weights.exists():  # encoders of several sizes share it
        tensors.write(weights, {k: np.ascontiguousarray(x)
                                for k, x in program.parameters.items()})
    shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in program.parameters.items()}
    if wishes.format == "onnx":
        import onnx

        from maskclippp_jax.export import onnx_graph

        stored = {name: onnx_graph.Stored(weights.name, place.start, place.size)
                  for name, place in files.places(weights).items()}
        graph = onnx_graph.convert(program.function, program.specs(), shapes, stored,
                                   program.outputs, program.name)
        onnx.save(graph, folder / f"{program.name}.onnx")
        onnx.checker.check_model(str(folder / f"{program.name}.onnx"))
        return
    exported = jax_export.export(jax.jit(program.function), platforms=programs.PLATFORMS)(
        shapes, *program.specs().values())
    (folder / f"{program.name}.stablehlo").write_bytes(exported.serialize())


def _umask(folder: pathlib.Path) -> int:
    """The rights that new folders do not get here."""
    probe = folder / "probe"
    probe.mkdir()
    mode = probe.stat().st_mode & 0o777
    probe.rmdir()
    return 0o777 & ~mode


# ---- The check ----------------------------------------------------------------------------------


def _check(folder: pathlib.Path, program: Program, exact: Program, wishes: Wishes,
           rng: np.random.Generator, previous: dict[str, np.ndarray]) -> Checked:
    """Runs a program as it was written, on drawn pictures, and ours in float32.

    `previous` has what ours returned of the last pictures, on which later programs run.
    """
    run, ours = _runner(folder, program, wishes), jax.jit(exact.function)
    ours = lambda *inputs, call=ours: jax.device_get(call(exact.parameters, *inputs))
    worst, seconds = 0.0, []
    for pictures, masks, size in _PICTURES:
        inputs = _drawn(program, pictures, masks, size, rng, previous)
        found, wanted = run(*inputs), ours(*inputs)
        for x, y in zip(found, wanted, strict=True):
            if y.dtype == bool:
                worst = max(worst, float((x != y).any()))
                continue
            scale = max(1.0, float(np.abs(y).max(initial=0)))
            difference = np.abs(np.asarray(x, np.float64) - y).max(initial=0) / scale
            worst = difference if not difference <= worst else worst
        if not seconds:
            seconds = [_seconds(f, inputs) for f in (run, ours)]
    previous.update(zip(exact.outputs, wanted))
    return Checked(float(worst), *seconds)


def _runner(folder: pathlib.Path, program: Program, wishes: Wishes) -> typing.Callable:
    """The written program, as a function of its inputs in order."""
    if wishes.format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; it warns of constants that it folded itself
        # Threads that wait would count as busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            folder / f"{program.name}.onnx", options, providers=["CPUExecutionProvider"])
        return lambda *inputs: session.run(None, dict(zip(program.inputs, inputs)))
    written = (folder / f"{program.name}.stablehlo").read_bytes()
    call = jax.jit(jax_export.deserialize(bytearray(written)).call)
    return lambda *inputs: jax.device_get(call(program.parameters, *inputs))


def _drawn(program: Program, pictures: int, masks: int, size: tuple[int, int],
           rng: np.random.Generator, previous: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Inputs of a program: smooth pictures, masks of rectangles, and what programs before it say.
    """
    sides = {"batch": pictures, "masks": masks, "picture_height": size[0],
             "picture_width": size[1], "mask_height": size[0] // 2, "mask_width": size[1] // 2}
    result = []
    for name, (shape, dtype) in program.inputs.items():
        known = previous.get(name)
        if name in ("embeddings", "patches", "patch_valid"):
            result.append(known)  # of the encoder, whatever their number
            continue
        if name == "generator_classes":
            of = previous["embeddings"]
            result.append(rng.standard_normal((*of.shape[:2], shape[2])).astype(dtype))
            continue
        shape = tuple(sides.get(s, s) for s in shape)
        if name == "image":
            small = rng.integers(0, 256, (shape[0], 6, 8, 3), np.uint8)
            result.append(np.stack([np.asarray(Image.fromarray(x).resize(
                shape[2:0:-1], Image.Resampling.BICUBIC)) for x in small]))
        elif name == "masks":
            # Shares of their own, so that no cell is just as full as a threshold.
            found, shares = np.zeros(shape, dtype), rng.uniform(0.5, 1, shape)
            for mask, share in zip(found.reshape(-1, *shape[2:]), shares.reshape(-1, *shape[2:])):
                top, left = (int(rng.integers(0, n // 2)) for n in mask.shape)
                inside = np.s_[top:top + mask.shape[0] // 2, left:left + mask.shape[1] // 2]
                mask[inside] = share[inside]
            result.append(found)
        else:  # mask_sizes
            result.append(np.array([size, size], dtype))
    return result


def _seconds(function: typing.Callable, inputs: typing.Sequence[np.ndarray]) -> float:
    start = time.process_time()
    function(*inputs)
    return time.process_time() - start
