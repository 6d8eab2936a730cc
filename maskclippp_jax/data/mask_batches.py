"""Padded batches of pictures with masks that somebody else made."""

import typing

import numpy as np

from maskclippp_jax.data import pipeline, transforms
from maskclippp_jax.data.bundles import PictureMasks
from maskclippp_jax.data.transforms import Version

_SLOTS = 8  # mask slots are a multiple of it


class MaskSource(typing.NamedTuple):
    """The masks of all pictures in one version."""

    version: Version                                # of the loaded pictures
    read: typing.Callable[[int], PictureMasks]      # by the number of a picture's record
    sizes: typing.Mapping[int, tuple[int, int]]     # stored height and width, of each wanted record
    most_masks: int                                 # of any picture


def mask_batches(records: typing.Sequence[dict], sources: typing.Sequence[MaskSource], *,
                 batch_size: pipeline.BatchSize, loader_min: int | None, loader_max: int | None,
                 host: int = 0, hosts: int = 1) -> typing.Iterator[list[dict]]:
    """Pictures with their masks, those of like size together; every host sees as many batches.

    Args:
      records: raw records, random access.
      sources: one for each version of the pictures, with the same records.
      batch_size: pictures a step over all hosts.
      loader_min: shorter side the picture is brought to, pixels; None leaves it.
      loader_max: longest side then allowed; None: any.
      host: number of this host.
      hosts: how many there are; must divide `batch_size`.

    Yields:
      The same pictures in every version, on canvases of one size. Of each version:
      image uint8 [B, H, W, 3] as loaded and changed, image_size int32 [B, 2]; output_size int32
      [B, 2], the stored size of the picture, and output_canvas, two ints; masks [B, N, h, w] as
      stored, mask_valid bool [B, N], stored and, of generated masks, enlarged and kept int32 [B, 2]
      (see `mask_chain.MaskSizes`); classes float32 [B, N, X] if they have any; valid bool [B],
      False for filling; image_id, a list of str; image_sizes, see `pipeline.eval_batches`.
    """
    num_masks = slots_for(max(s.most_masks for s in sources))
    multiple = pipeline.CANVAS
    sizes, canvases = {}, {}  # of the pictures in all versions
    for i in sources[0].sizes:
        size = pipeline.size_of(records[i])
        loaded = pipeline.loaded_size(size, loader_min, loader_max)
        sizes[i] = [transforms.version_size(loaded, s.version) for s in sources]
        largest, stored = (tuple(np.max(x, 0).tolist()) for x in (
            sizes[i], [s.sizes[i] for s in sources]))
        canvases[i] = (pipeline.up(largest, multiple), pipeline.up(size, multiple),
                       mask_canvas(stored, largest))
    if callable(batch_size):
        batch_size = batch_size([size for of_picture in sizes.values() for size in of_picture],
                                num_masks)

    def rows_of(i, valid, canvas):
        image, _, name = pipeline.decode(records[i])
        size = image.shape[:2]
        image = transforms.resize_image(image, pipeline.loaded_size(size, loader_min, loader_max))
        facts = dict(output_size=np.array(size, np.int32), valid=np.bool_(valid), image_id=name)
        return [row_of(transforms.make_version(image, s.version), s.read(i), canvas, num_masks)
                | facts for s in sources]

    def load(job):
        pictures = [rows_of(i, valid, job.canvas) for i, valid in job.members]
        versions = []
        for number, rows in enumerate(zip(*pictures)):
            batch = {k: np.stack([r[k] for r in rows]) for k in rows[0] if k != "image_id"}
            everyone = np.array([sizes[i][number] for i in job.everyone], np.int32)
            versions.append(batch | dict(
                image_id=[r["image_id"] for r in rows], output_canvas=job.canvas[1],
                image_sizes=everyone))
        return versions

    return pipeline.load_jobs(pipeline.share_out(canvases, batch_size, host, hosts), load)


def slots_for(most_masks: int) -> int:
    """Slots for the masks of a batch in which no picture has more than some number of them."""
    return -(-max(1, most_masks) // _SLOTS) * _SLOTS


def mask_canvas(stored: tuple[int, int], loaded: tuple[int, int]) -> tuple[int, ...]:
    """The canvas of masks stored at a size, of a picture loaded at another one.

    Masks at a fraction of the input are smaller, so are their canvases.
    """
    cells = pipeline.CANVAS // 4 if max(stored) * 2 < max(loaded) else pipeline.CANVAS
    return pipeline.up(stored, cells)


def row_of(image: np.ndarray, found: PictureMasks, canvas: tuple, num_masks: int) -> dict:
    """One picture of a batch, see `mask_batches`.

    Args:
      image: [H, W, 3] uint8 as loaded.
      found: its masks.
      canvas: (height, width) of pictures, of results (not used) and of masks.
      num_masks: N.
    """
    count, *stored = found.masks.shape
    masks = np.zeros((num_masks, *canvas[2]), found.masks.dtype)
    masks[:count, :stored[0], :stored[1]] = found.masks
    row = dict(
        image=transforms.pad_to_canvas(image, canvas[0]),
        image_size=np.array(image.shape[:2], np.int32), masks=masks,
        mask_valid=np.arange(num_masks) < count, stored=np.array(stored, np.int32))
    if found.kept is not None:
        row |= dict(enlarged=np.array(found.enlarged, np.int32),
                    kept=np.array(found.kept, np.int32))
    if found.classes is not None:
        row["classes"] = np.pad(found.classes, [(0, num_masks - count), (0, 0)])
    return row
