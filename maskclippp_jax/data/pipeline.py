"""From records to padded batches, with Grain.

Training batches depend on the seed and the step alone: not on the number of worker processes or
threads, and not on the number of hosts (hosts share the batches out last). So the position in the
data is the step, and a run resumes by starting there.
"""

import collections
import dataclasses
import multiprocessing
import os
import threading
import typing

import cv2
import jax
import numpy as np
from absl import flags, logging
from etils import epy

from maskclippp_jax.data import images, transforms
from maskclippp_jax.data.records import decode_segments, id_of
from maskclippp_jax.models import resample

with epy.lazy_imports():  # slow to import, and not needed to name a photograph
    import grain

CANVAS = 64  # pixels; sides of evaluation canvases are multiples of it

cv2.setNumThreads(1)  # the parallelism is over pictures


def decode(record: dict) -> tuple[np.ndarray, np.ndarray, str]:
    """Picture [H, W, 3] uint8 RGB, segments [H, W] uint16, and id of a raw record.

    Raises:
      ValueError: the picture cannot be decoded, or has another size than its segments.
    """
    name = id_of(record)
    # Orientation was applied when the record was made.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), flags)
    if image is None:
        raise ValueError(f"the picture of record {name} cannot be decoded; prepare the data "
                         "set again")
    images.check_whole(image.shape[:2], f"the picture of record {name}")
    segments = decode_segments(record["segments"])
    if segments.shape != image.shape[:2]:
        raise ValueError(f"record {name}: the picture is {image.shape[:2]}, its segments "
                         f"{segments.shape}; prepare the data set again")
    return image, segments, name


@dataclasses.dataclass(frozen=True)
class SemanticFamily:
    """The COCO-Stuff recipe: resize, crop, colour, flip."""

    size: int                         # side of the canvas, pixels
    short_sides: tuple[int, ...] = ()  # to draw from, pixels
    color_jitter: bool = True

    keep_vanished = False  # one mask for each class that is left in the picture

    def __call__(self, rng: np.random.Generator, image: np.ndarray, segments: np.ndarray
                 ) -> tuple[np.ndarray, np.ndarray]:
        """A picture [h, w, 3] uint8 and its segments [h, w], at most the canvas."""
        short = self.short_sides[rng.integers(len(self.short_sides))]
        size = transforms.shortest_edge(*segments.shape, short, transforms.MAX_SIDE)
        image = transforms.resize_image(image, size)
        segments = transforms.resize_segments(segments, size)
        image, segments = transforms.random_crop(rng, image, segments, self.size)
        if self.color_jitter:
            image = transforms.apply_color_jitter(image, transforms.draw_color_jitter(rng))
        if rng.random() < 0.5:
            image, segments = image[:, ::-1], segments[:, ::-1]
        return image, segments


@dataclasses.dataclass(frozen=True)
class PanopticFamily:
    """The COCO panoptic recipe: flip, large-scale jitter; the canvas is always full."""

    size: int                               # side of the canvas, pixels
    scales: tuple[float, float] = (0.1, 2.0)  # of the canvas, to draw from

    keep_vanished = True  # one mask for each annotated segment, also if nothing of it is left

    def __call__(self, rng: np.random.Generator, image: np.ndarray, segments: np.ndarray
                 ) -> tuple[np.ndarray, np.ndarray]:
        """As `SemanticFamily`; the canvas is filled with grey 128, which the network sees."""
        if rng.random() < 0.5:
            image, segments = image[:, ::-1], segments[:, ::-1]
        canvas = (self.size, self.size)
        size = transforms.fitting_size(*segments.shape, rng.uniform(*self.scales), canvas)
        image = transforms.resize_image(np.ascontiguousarray(image), size)
        segments = transforms.resize_panoptic(segments, size)
        return transforms.large_scale_crop(image, segments, rng.random(), canvas)


def family_of(settings) -> SemanticFamily | PanopticFamily:
    """The augmentation that `config.train` describes."""
    if settings.family == "panoptic":
        return PanopticFamily(settings.size)
    return SemanticFamily(settings.size, tuple(settings.short_sides), settings.color_jitter)


class _Augment:
    """Decodes a record, augments it, numbers its masks and pads it to the canvas."""

    def __init__(self, family, num_masks: int, masks: str, drop_smallest: bool, skip_broken: bool):
        self.family, self.num_masks, self.masks = family, num_masks, masks
        self.drop_smallest, self.skip_broken = drop_smallest, skip_broken

    def __call__(self, record, rng: np.random.Generator) -> dict:
        canvas = (self.family.size, self.family.size)
        try:
            image, segments, name = decode(record)
        except ValueError as error:
            if not self.skip_broken:
                raise
            logging.warning("left out: %s", error)
            return dict(
                image=np.zeros((*canvas, 3), np.uint8), image_size=np.array(canvas, np.int32),
                segments=np.zeros(canvas, np.uint16),
                labels=np.full(self.num_masks, -1, np.int32), broken=np.int32(1))
        image, segments = self.family(rng, image, segments)
        if self.masks == "degraded":
            segments = transforms.degrade_segments(rng, segments)
        segments, labels = transforms.to_slots(
            segments, record["table"], self.num_masks, name,
            keep_vanished=self.family.keep_vanished, drop_smallest=self.drop_smallest)
        return dict(
            image=transforms.pad_to_canvas(image, canvas),
            image_size=np.array(image.shape[:2], np.int32),
            segments=transforms.pad_to_canvas(segments, canvas), labels=labels,
            broken=np.int32(0))


def augmented(record: typing.Mapping, family: SemanticFamily | PanopticFamily, num_masks: int,
              rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One picture as `train_batches` has it, without the batch."""
    return _Augment(family, num_masks, "ground_truth", False, False)(record, rng)


def train_batches(sources: typing.Sequence[typing.Sequence[dict]], *,
                  family: SemanticFamily | PanopticFamily, num_masks: int, batch_size: int,
                  seed: int, weights: typing.Sequence[float] = (), start_step: int = 0,
                  host: int = 0, hosts: int = 1, masks: str = "ground_truth",
                  drop_smallest: bool = False, skip_broken: bool = False,
                  workers: int = 0) -> typing.Iterator[dict[str, np.ndarray]]:
    """Endless training batches of this host, every source shuffled anew in every pass.

    Args:
      sources: raw records of one data set or several, random access.
      family: the augmentation.
      num_masks: N, slots of a picture.
      batch_size: pictures a step over all hosts.
      seed: of order and augmentation.
      weights: how often each source is drawn from; (): by its size.
      start_step: first step wanted.
      host: number of this host.
      hosts: how many there are; must divide `batch_size`.
      masks: "ground_truth", or "degraded" (`transforms.degrade_segments`).
      drop_smallest: what happens to pictures with more masks, see `transforms.to_slots`.
      skip_broken: a record that cannot be decoded becomes a picture without masks; False stops.
      workers: processes; 0 reads in threads of this one.

    Yields:
      image uint8 [B, H, W, 3], image_size int32 [B, 2], segments uint16 [B, H, W], labels int32
      [B, N]; broken int32 [B], 1 for a record that could not be decoded. B is this host's share.
    """
    if batch_size % hosts:
        raise ValueError(f"train.batch_size is {batch_size}, but there are {hosts} hosts; choose a "
                         "multiple")
    parts = [grain.MapDataset.source(records).seed(seed + i).shuffle().repeat()
             for i, records in enumerate(sources)]
    weights = list(weights) or [float(len(records)) for records in sources]
    dataset = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights).seed(seed)
    dataset = dataset.random_map(
        _Augment(family, num_masks, masks, drop_smallest, skip_broken))
    # Hosts are told apart last: before the random map they would all draw the same numbers. Each
    # takes its stretch of every batch: the rows of a batch are the same, in the same order.
    dataset = dataset.batch(batch_size // hosts, drop_remainder=True)[host::hosts][start_step:]
    threads = max(2, os.cpu_count() or 2)
    batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads,
                                                        prefetch_buffer_size=2 * threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers ask for flags, also in a notebook
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers),
                                      worker_init_fn=_end_with_the_run)
    return _watched(iter(batches))


def _end_with_the_run(worker: int, workers: int) -> None:
    """Lets a process that reads data end when the run does, also when that is killed."""
    del worker, workers

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _watched(batches: typing.Iterator) -> typing.Iterator:
    try:
        yield from batches
    except RuntimeError as error:
        if "Worker process" not in str(error):
            raise
        first_line = str(error).splitlines()[0]
        raise ChildProcessError(
            f"a process that reads data ended ({first_line}); if memory ran out, lower "
            "train.workers; the same line goes on from the last checkpoint") from None


class Padding(typing.NamedTuple):
    """What evaluation canvases cost beside the pictures."""

    canvases: int   # different ones, so programs
    pixels: float   # share of all pixels that lie outside of pictures, filling left aside
    filling: float  # share of pictures that only fill up batches


def padding_of(sizes: typing.Sequence[tuple[int, int]], *, batch_size: int,
               canvas_multiple: int = CANVAS) -> Padding:
    """The padding of pictures of these sizes (height, width) when they are evaluated."""
    groups = collections.Counter(up(size, canvas_multiple) for size in sizes)
    whole = sum(h * w * count for (h, w), count in groups.items())
    filling = sum(-count % batch_size for count in groups.values())
    return Padding(len(groups), 1 - sum(h * w for h, w in sizes) / whole,
                   filling / (len(sizes) + filling))


def up(size: tuple[int, int], multiple: int) -> tuple[int, ...]:
    """Sides of a size rounded up to a multiple."""
    return tuple(-(-side // multiple) * multiple for side in size)


def few_sides(size: tuple[int, int]) -> tuple[int, ...]:
    """Sides of a size rounded up to a power of two, or one and a half of one: few canvases for
    pictures of whatever sizes, on which little is computed."""
    return tuple(resample.few(max(side, CANVAS)) for side in size)


# A number, or a function of the sizes of loaded pictures and of the most masks of one.
BatchSize = int | typing.Callable[[typing.Sequence[tuple[int, int]], int], int]


def eval_batches(records: typing.Sequence[dict], *, batch_size: BatchSize, loader_min: int | None,
                 loader_max: int | None, canvas_multiple: int = CANVAS,
                 chosen: typing.Sequence[int] | None = None, host: int = 0,
                 hosts: int = 1) -> typing.Iterator[dict]:
    """Pictures once each, those of like size together; every host sees as many batches.

    Args:
      records: raw records, random access.
      batch_size: pictures a step over all hosts.
      loader_min: shorter side the picture is brought to, pixels; None leaves it.
      loader_max: longest side then allowed; None: any.
      canvas_multiple: canvas sides are multiples of this, so that there are few of them.
      chosen: numbers of the records wanted; None: all.
      host: number of this host.
      hosts: how many there are; must divide `batch_size`.

    Yields:
      image uint8 [B, H, W, 3] after the loader's resize, image_size int32 [B, 2]; segments uint16
      [B, H', W'] at the stored size, segments_size int32 [B, 2]; labels int32 [B, N], with N the
      most masks of any picture, rounded up to a multiple of 8; valid bool [B], False for filling;
      image_id, a list of str. B is this host's share; image_sizes int32 [batch_size, 2] are those
      of all hosts, which must agree on a canvas.
    """
    facts = [(size_of(r), len(r["table"]["id"])) for r in map(records.__getitem__,
                                                                          range(len(records)))]
    num_masks = -(-max(1, max(n for _, n in facts)) // 8) * 8
    sizes, canvases = {}, {}  # of the loaded pictures
    for i in range(len(records)) if chosen is None else chosen:
        stored, _ = facts[i]
        sizes[i] = loaded_size(stored, loader_min, loader_max)
        canvases[i] = up(sizes[i], canvas_multiple) + up(stored, canvas_multiple)
    if callable(batch_size):
        batch_size = batch_size(list(sizes.values()), num_masks)

    def load(job):
        rows = [_eval_row(records[i], valid, job.canvas, num_masks, loader_min, loader_max)
                for i, valid in job.members]
        batch = {k: np.stack([r[k] for r in rows]) for k in rows[0] if k != "image_id"}
        return batch | dict(image_id=[r["image_id"] for r in rows],
                            image_sizes=np.array([sizes[i] for i in job.everyone], np.int32))

    return load_jobs(share_out(canvases, batch_size, host, hosts), load)


class Job(typing.NamedTuple):
    """A batch of an evaluation."""

    canvas: tuple                    # of all its pictures
    members: list[tuple[int, bool]]  # this host's pictures; False: only fills the batch up
    everyone: list[int]              # the pictures of all hosts


def share_out(canvases: typing.Mapping[int, tuple], batch_size: int, host: int, hosts: int
              ) -> list[Job]:
    """Batches of pictures with the same canvas.

    Args:
      canvases: of each picture.
      batch_size: pictures a step over all hosts.
      host: number of this host.
      hosts: how many there are; must divide `batch_size`.

    Returns:
      As many for every host. What fills one up are copies, so that they fit the canvas.
    """
    if batch_size % hosts:
        raise ValueError(f"eval.batch_size is {batch_size}, but there are {hosts} hosts; choose a "
                         "multiple")
    groups: dict[tuple, list[int]] = {}
    for i, canvas in canvases.items():
        groups.setdefault(canvas, []).append(i)
    share, jobs = batch_size // hosts, []
    for canvas, numbers in sorted(groups.items()):
        members = [(i, True) for i in numbers]
        members += [(numbers[0], False)] * (-len(members) % batch_size)
        for k in range(0, len(members), batch_size):
            mine = members[k + host * share:k + (host + 1) * share]
            jobs.append(Job(canvas, mine, [i for i, _ in members[k:k + batch_size]]))
    return jobs


def load_jobs(jobs: list, load: typing.Callable) -> typing.Iterator[dict]:
    """`load(job)` of every job, in order, some ahead in threads."""
    if not jobs:
        return iter(())
    dataset = grain.MapDataset.source(jobs).map(load)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def loaded_size(stored: tuple[int, int], loader_min: int | None, loader_max: int | None
                ) -> tuple[int, int]:
    """Size of a picture after the loader's resize."""
    if loader_min is None:
        return stored
    return transforms.shortest_edge(*stored, loader_min, loader_max)


def _eval_row(record, valid, canvases, num_masks, loader_min, loader_max):
    image, segments, name = decode(record)
    stored = segments.shape
    image = transforms.resize_image(image, loaded_size(stored, loader_min, loader_max))
    segments, labels = transforms.to_slots(segments, record["table"], num_masks, name)
    return dict(
        image=transforms.pad_to_canvas(image, canvases[:2]),
        image_size=np.array(image.shape[:2], np.int32),
        segments=transforms.pad_to_canvas(segments, canvases[2:]),
        segments_size=np.array(stored, np.int32),
        labels=labels if valid else np.full_like(labels, -1), valid=np.bool_(valid), image_id=name)


def size_of(record: dict) -> tuple[int, int]:
    """Height and width of a record's picture, from the header of its segments."""
    png = record["segments"]
    return int.from_bytes(png[20:24], "big"), int.from_bytes(png[16:20], "big")


def to_device(batch: dict[str, np.ndarray],
              sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """This host's share of a batch as global arrays. The one place where numpy becomes JAX."""
    with jax.transfer_guard_host_to_device("allow"):  # this is meant
        return {name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
                for name, array in batch.items()}
