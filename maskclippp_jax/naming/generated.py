"""A generator's masks of the pictures of a data set: made when they are asked for, or stored.

`Generated` says of them what a bundle does and takes its place in an evaluation; `export` stores
them as one. Every query is a mask, also that of no object: its void says so.
"""

import concurrent.futures
import os
import typing

import ml_collections
import numpy as np
from absl import logging

from maskclippp_jax.data import bundle_writer, pipeline, records, transforms
from maskclippp_jax.data.bundles import Bundle, PictureMasks
from maskclippp_jax.data.generator_input import Preparation, Way
from maskclippp_jax.data.transforms import Version
from maskclippp_jax.naming import generator_loading
from maskclippp_jax.naming.generator import Generator
from maskclippp_jax.runtime import progress
from maskclippp_jax.vocabulary import Vocabulary


class Generated:
    """The masks of one version of all pictures; attributes and methods are those of a `Bundle`."""

    masks, float32 = "logits", True

    def __init__(self, generator: Generator, rows: typing.Sequence[dict], *,
                 preparation: Preparation, version: Version = Version()):
        """Nothing is read or run yet.

        Args:
          generator: from now on its pictures come as loaded, `preparation` tells the rest.
          rows: raw records, random access.
          preparation: see `preparation_of`.
          version: of the loaded pictures.

        Raises:
          ValueError: a generator for label maps.
        """
        generator.require_masks()
        self._generator, self._rows = generator, rows
        self._sizes = records.sizes_of(rows)
        self._place = dict(zip(self._sizes, range(len(rows))))
        self.preparation, self.version = preparation, version
        if preparation.letterbox is None:  # what the loader does is done here
            generator.preparation = preparation._replace(loader_min=None, loader_max=None)
        self.folder, self.generator = generator.title, generator.facts
        self.kind, self.width, self.classes = generator.kind, generator.width, generator.classes
        self.vocabulary = generator.vocabulary if self.kind == "closed" else None
        self.stride, self.most_masks = generator.config.stride, generator.num_queries

    @property
    def ids(self) -> list[str]:
        return list(self._sizes)

    def embed(self, vocabulary: Vocabulary) -> np.ndarray:
        """See `Generator.embed`."""
        return self._generator.embed(vocabulary)

    def stored_size(self, image_id: str) -> tuple[int, int]:
        return tuple(side // self.stride for side in self._way(self._loaded(image_id)).padded)

    def sizes(self, image_id: str) -> tuple[tuple[int, int], ...]:
        """What a bundle's manifest says of a picture: size, loaded, resized, padded."""
        loaded = self._loaded(image_id)
        way = self._way(loaded)
        return self._sizes[image_id], loaded, way.resized, way.padded

    def read(self, image_id: str) -> PictureMasks:
        """Runs the generator; may be called by several threads, which it serves in turn.

        Raises:
          ValueError: the picture cannot be decoded or is too large, or the masks are no numbers.
        """
        image, _, _ = pipeline.decode(self._rows[self._place[image_id]])
        loaded = transforms.resize_image(image, self._loader_size(image.shape[:2]))
        version = transforms.make_version(loaded, self.version)
        found = self._generator.propose(np.ascontiguousarray(version))
        if np.isnan(found.masks).any() or np.isnan(found.classes).any():
            raise ValueError(f"{self.folder} gives NaN for picture {image_id}; its weights are "
                             "damaged, download them again")
        return found

    def check_pictures(self, sizes: typing.Mapping[str, tuple[int, int]], what: str, *,
                       allow_missing: bool) -> list[str]:
        """No picture is missing: masks are made of all."""
        del sizes, what, allow_missing
        return []

    def _loader_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return pipeline.loaded_size(size, self.preparation.loader_min, self.preparation.loader_max)

    def _loaded(self, image_id: str) -> tuple[int, int]:
        return transforms.version_size(self._loader_size(self._sizes[image_id]), self.version)

    def _way(self, loaded: tuple[int, int]) -> Way:
        return self._generator.way_of(loaded)


# Where an evaluation finds masks: stored ones, or such as are made now.
AnyBundle = Bundle | Generated


def open_generator(source: str, rows: typing.Sequence[dict], versions: typing.Sequence[Version],
                   settings: ml_collections.ConfigDict | None = None) -> list[Generated]:
    """The masks that a generator makes of each version of pictures.

    Args:
      source: of the generator, see `api.load_generator`.
      rows: raw records of the pictures, random access.
      versions: of the pictures.
      settings: `config.eval`, see `preparation_of`; its CLIP is that of an FC-CLIP's file alone.

    Raises:
      FileNotFoundError, ValueError: there is no such generator, or it has no masks.
    """
    # Every query is a mask: its void tells whether it is an object.
    generator = generator_loading.load(
        source, objectness=0.0, usual_clip=settings and settings.generator_weights or None)
    logging.info("masks are of %s", generator)
    preparation = preparation_of(generator, settings)
    return [Generated(generator, rows, preparation=preparation, version=version)
            for version in versions]


def preparation_of(generator: Generator, settings: ml_collections.ConfigDict | None = None
                   ) -> Preparation:
    """How an evaluation brings pictures into a generator.

    Args:
      generator: an EoMT has a square, whatever is evaluated.
      settings: `config.eval`, whose loader and `mask_short_side` the others get, as in the
        published evaluations of MaskCLIP++; None: their own.
    """
    own = generator.preparation
    if own is None:
        side = generator.config.image_size[0]
        return Preparation(None, None, None, side, letterbox=side)
    if settings is None:
        return own
    return Preparation(settings.loader_min, settings.loader_max, settings.mask_short_side,
                       own.multiple)


def export(generated: Generated, folder: str | os.PathLike, *, float32: bool = False) -> int:
    """Writes a bundle of all pictures, or goes on with one that was stopped.

    Args:
      generated: the masks.
      folder: of the bundle.
      float32: whether mask logits keep all their digits, which makes it twice as large.

    Returns:
      How many pictures it has.

    Raises:
      FileExistsError: there is a finished bundle.
      ValueError: it was begun with another generator or other settings, or see `Generated.read`.
    """
    augmentation = generated.version._asdict() if generated.version != Version() else None
    writer = bundle_writer.Writer(
        folder, masks="logits", classes=generated.classes, generator=generated.generator,
        preparation=generated.preparation.facts(), stride=generated.stride,
        augmentation=augmentation, float32=float32)

    def write(image_id):
        found = generated.read(image_id)
        writer.add(image_id, found.masks, generated.sizes(image_id), found.classes)

    left = [i for i in generated.ids if not writer.has(i)]
    # Packing a picture's masks takes longer than making them on an accelerator.
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        try:
            for _ in progress.track(pool.map(write, left), "making masks", total=len(left)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that were begun are finished
            raise
    writer.finish()
    return len(generated.ids)
