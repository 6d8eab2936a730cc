"""What a caller of exported programs must do before and after, as data."""

import importlib.metadata
import typing

import numpy as np

from maskclippp_jax.data import label_maps
from maskclippp_jax.export import programs
from maskclippp_jax.export.programs import Program
from maskclippp_jax.models import layers
from maskclippp_jax.naming.generator import Generator
from maskclippp_jax.naming.namer import Namer, Words
from maskclippp_jax.weights import released


def facts(namer: Namer, generator: Generator | None, words: Words, wishes,
              made: typing.Sequence[Program], checked) -> dict:
    """What a caller must do before and after, as data; the arguments: see `folder`."""
    settings, vocabulary, image = namer.config.eval, words.vocabulary, namer.model.image
    versions = ["jax", "numpy", *(["onnx", "onnxruntime"] if wishes.format == "onnx" else [])]
    runs = dict(ensemble=False) if generator is None else dict(
        ensemble=bool(settings.ensemble), alpha=settings.alpha, beta=settings.beta,
        objectness_given_back=settings.get("objectness", 0.0))
    result = dict(
        format=wishes.format, model=released.without_folders(namer.title), dtype=wishes.dtype,
        versions={n: importlib.metadata.version(n) for n in versions},
        short_side=namer.short_side,
        encoders=[dict(program=p.name, width=int(w), height=int(h)) for p in made
                  if p.weights == "encoder" for w, h in [p.name.split("_")[1].split("x")]],
        picture=dict(
            channels="RGB", dtype="uint8", layout="NHWC", shorter_side=settings.loader_min,
            longest_side=settings.loader_max,
            reading="upright by EXIF; grey of 16 bits divided by 257 and rounded; transparency "
                    "over white; of an animation the first",
            filter="bilinear, antialiased (Pillow's)", rounding="half up",
            normalization="within the graph"),
        label_map=dict(
            nothing=list(label_maps.NOTHING), shorter_side=settings.mask_short_side,
            ordinary="the first of `nothing` is a mask where numbers between the two are there",
            mask_sizes="both rows: the loaded picture's size with this shorter side (whole pixels, "
                       "cut); null: the label map's own size"),
        within_the_graph=dict(
            resize="the picture to short_side, or as much less as fits the encoder; bilinear, "
                   "half-pixel centres, not antialiased",
            mean=list(getattr(image, "pixel_mean", layers.PIXEL_MEAN)),
            std=list(getattr(image, "pixel_std", layers.PIXEL_STD)),
            padding="0 after the normalization, at the right and below",
            masks="stored -> mask_sizes[0] -> cut at the top left to mask_sizes[1] -> the "
                  "network's size -> the token grid, each step bilinear, half-pixel centres, not "
                  "antialiased", cell=image.patch_size,
            logit_scale=programs.logit_scale(namer.model, namer.params),
            classes="the best of its names; softmax over classes"),
        combine=dict(
            label_map="a pixel has the best class of its mask",
            semantic="the class with the largest sum over masks of score times mask",
            panoptic=dict(
                competes="best score >= void and > object_threshold",
                wins="the largest best score times mask",
                object_threshold=settings.object_threshold, mask_threshold=0.5,
                overlap_threshold=settings.overlap_threshold,
                merged="masks of one class that is stuff (thing: false)"),
            void="scores and void sum to 1; without a generator there is no void", **runs),
        classes=[dict(names=list(names), thing=bool(thing), id=int(number)) for
                 names, thing, number in zip(vocabulary.classes, vocabulary.is_thing,
                                             vocabulary.dataset_ids)],
        templates=list(namer.config.templates),
        fixed="where `shape` of an input has a number of pictures or masks, repeat the last one up "
              "to it and cut the results",
        programs={p.name: _entry(p, wishes, checked[p.name]) for p in made})
    if wishes.format == "onnx":
        from maskclippp_jax.export import onnx_graph
        result |= dict(opset=onnx_graph.OPSET, ir_version=onnx_graph.IR_VERSION)
    else:
        result |= dict(platforms=list(programs.PLATFORMS),
                       attention="the plain form; the kernel for TPUs cannot be in an artefact for "
                       "several platforms")
    if generator is not None:
        c = generator.config
        result["generator"] = dict(
            model=released.without_folders(generator.title), side=c.image_size[0], stride=c.stride,
            objectness=generator.objectness, mask_threshold=0.5, filter="bilinear, antialiased "
            "(Pillow's)", resize="letterbox: the longer side to `side`, halves rounded to even",
            padding="black (0) at the right and below", mean=list(c.pixel_mean),
            std=list(c.pixel_std), normalization="within the graph",
            mask_sizes="[[side, side], the picture's size within the square]",
            kept="queries that are an object with more than `objectness` (1 - softmax of the last "
                 "logit) and more than mask_threshold in a cell of the picture",
            classes=[list(names) for names in generator.vocabulary.classes])
    return result


def _entry(program: Program, wishes, checked) -> dict:
    spec = lambda shape, dtype: dict(shape=list(shape), dtype=str(np.dtype(dtype)))
    return dict(
        file=f"{program.name}.{wishes.format}", parameters=f"{program.weights}.safetensors",
        inputs={name: spec(*of) for name, of in program.inputs.items()},
        outputs=list(program.outputs), difference=checked.difference)
