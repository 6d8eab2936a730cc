"""What a record holds, and how a prepared data set is opened.

`<data_dir>/<name>/<version>/` is an ordinary TFDS data set (`tfds.builder_from_directory` reads
it); `data/build.py` writes it. A data set has one kind of ground truth:

- semantic: one segment for each class of the picture;
- panoptic: segments as annotated, things and stuff, no two on one pixel;
- instance: things that may lie over each other.

All kinds are the same record: the picture as JPEG or PNG bytes, `segments` (PNG, uint16: 0 =
nothing, else the `id` of a row), and one row of `table` for each segment. Where masks overlap,
`segments` shows the upper one (small ones lie on large ones, crowds at the bottom), and rows that
are covered in part carry their whole mask as `rle`. `area` and `bbox` are those of the annotation
where it records them, which may differ from what is visible; `source_id` is the data set's own
number of the segment.

The functions that make records add `visible`, int64 [n]: the pixels of each mask that show. It is
not stored.
"""

import functools
import hashlib
import io
import pathlib
import typing

import cv2
import numpy as np
from etils import epy

from maskclippp_jax.data.images import encode_png, size_of
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.vocabulary import Vocabulary

with epy.lazy_imports():  # slow to import, and not needed to name a photograph
    import tensorflow_datasets as tfds
    from scipy import ndimage

VERSION = "1.1.0"
KINDS = ("semantic", "panoptic", "instance")
LEARNABLE = 4   # pixels of a mask that must show so that something can be learnt from it
_MOST = 2**16 - 1  # segments of a picture: `segments` has 16 bits
_END = 1 << 16  # bytes of both ends of a record file that `fingerprint` reads
_LEAST = 1 << 16  # bytes of a whole ArrayRecord file
_AGAIN = "; prepare it again, or copy it again from where it was made"
NAMES_FILE = "names.txt"  # of a data set with a vocabulary of its own


def _column(dtype: type, *shape: int) -> "tfds.features.Tensor":
    # As bytes: TFDS keeps floats of other encodings in 32 bits.
    return tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes")


@functools.cache
def features() -> "tfds.features.FeaturesDict":
    """What TFDS is told of a record."""
    return tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3)),
        "image_id": tfds.features.Text(),
        "segments": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16,
                                        encoding_format="png"),
        "table": {
            "id": _column(np.int64),
            "class_id": _column(np.int64),
            "is_thing": _column(np.bool_),
            "is_crowd": _column(np.bool_),
            "area": _column(np.float64),     # pixels
            "bbox": _column(np.float64, 4),  # left, top, width, height in pixels
            "source_id": _column(np.int64),
            "rle": tfds.features.Sequence(tfds.features.Text()),  # counts as COCO compresses them
        },
        # LVIS: classes known to be absent, and classes of which there may be more than annotated.
        "negative_classes": _column(np.int64),
        "not_exhaustive_classes": _column(np.int64),
    })


@functools.cache
def _serializer() -> "tfds.core.example_serializer.ExampleSerializer":
    return tfds.core.example_serializer.ExampleSerializer(features().get_serialized_info())


def serialize(record: dict) -> bytes:
    """A record as it is stored: the same bytes in every process, which TFDS does not ask for, as
    fingerprints must not depend on who made a data set."""
    encoded = features().encode_example(
        record | {key: io.BytesIO(record[key]) for key in ("image", "segments")})
    return _serializer().get_tf_example(encoded).SerializeToString(deterministic=True)


class Segment(typing.NamedTuple):
    """A row of the table."""

    class_id: int
    is_thing: bool
    is_crowd: bool = False
    source_id: int = 0
    area: float | None = None         # None: the pixels of its mask
    bbox: typing.Sequence[float] | None = None


def semantic_record(image: bytes, image_id: str, label: np.ndarray, is_thing: typing.Sequence[bool],
                    void: int = 255) -> dict:
    """A record with one segment for each class of a label map, classes ascending.

    Args:
      image: encoded JPEG or PNG.
      image_id: unique in the data set.
      label: [H, W] integer class ids, `void` = nothing.
      is_thing: for each class.
      void: the value that is no class.

    Raises:
      ValueError: a value that is neither.
    """
    label = label.astype(np.int64)
    nothing = label == void
    wrong = ((label < 0) | (label >= len(is_thing))) & ~nothing
    if wrong.any():
        raise ValueError(f"{image_id}: the label map holds {label[wrong][0]}, wanted 0 ... "
                         f"{len(is_thing) - 1}, or {void} for nothing")
    segments = np.where(nothing, 0, label + 1)
    present = np.flatnonzero(np.bincount(segments.ravel(), minlength=2)[1:])
    rows = [Segment(int(c), bool(is_thing[c])) for c in present]
    return assemble(image, image_id, segments.astype(np.uint16), rows, ids=present + 1)


def panoptic_record(image: bytes, image_id: str, source_ids: np.ndarray,
                    rows: typing.Sequence[Segment]) -> dict:
    """A record of segments that share no pixel.

    Args:
      image: encoded JPEG or PNG.
      image_id: unique in the data set.
      source_ids: [H, W] integers, the `source_id` of the segment, 0 = nothing.
      rows: one of each segment; some may have no pixel.

    Raises:
      ValueError: two rows with one source_id, or pixels of none.
    """
    ids = [0] + [r.source_id for r in rows]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"{image_id}: the segment id {twice} is " + (
            "given to a segment, but means nothing" if twice == 0 else "used twice"))
    segments = positions(source_ids, np.array(ids))
    _check_count(rows, image_id)
    if segments.min(initial=0) < 0:
        raise ValueError(f"{image_id}: there are pixels of segment {source_ids[segments < 0][0]}, "
                         "but it is not described; are picture and annotation of one release?")
    return assemble(image, image_id, segments.astype(np.uint16), rows)


def instance_record(image: bytes, image_id: str, size: tuple[int, int],
                    masks: typing.Sequence[dict], rows: typing.Sequence[Segment], *,
                    negative_classes: typing.Sequence[int] = (),
                    not_exhaustive_classes: typing.Sequence[int] = ()) -> dict:
    """A record of masks that may overlap.

    Args:
      image: encoded JPEG or PNG.
      image_id: unique in the data set.
      size: height, width.
      masks: for each row its run lengths, see `run_lengths.read`.
      rows: one of each mask.
      negative_classes: ids of classes that are certainly not in the picture.
      not_exhaustive_classes: ids of classes of which more may be in the picture.
    """
    _check_count(rows, image_id)
    areas = [run_lengths.area(mask) for mask in masks]
    segments = np.zeros(size, np.uint16)
    for n in sorted(range(len(rows)), key=lambda n: (not rows[n].is_crowd, -areas[n])):
        segments[run_lengths.decode(masks[n])] = n + 1
    visible = np.bincount(segments.ravel(), minlength=len(rows) + 1)[1:]
    rles = [mask["counts"] if area != seen else b""
            for mask, area, seen in zip(masks, areas, visible)]
    rows = [r._replace(area=float(a) if r.area is None else r.area,
                       bbox=run_lengths.box(m) if r.bbox is None else r.bbox)
            for r, a, m in zip(rows, areas, masks)]
    return assemble(image, image_id, segments, rows, rles=rles, negative_classes=negative_classes,
                    not_exhaustive_classes=not_exhaustive_classes)


def _check_count(rows: typing.Sequence[Segment], image_id: str) -> None:
    if len(rows) > _MOST:
        raise ValueError(f"{image_id} has {len(rows)} segments, and a record holds {_MOST}; cut "
                         "the picture into pieces")


def assemble(image: bytes, image_id: str, segments: np.ndarray, rows: typing.Sequence[Segment], *,
             ids: typing.Sequence[int] | None = None, rles: typing.Sequence | None = None,
             negative_classes: typing.Sequence[int] = (),
             not_exhaustive_classes: typing.Sequence[int] = ()) -> dict:
    """A record of what `segments` [H, W] uint16 shows.

    Args:
      image, image_id, rows, negative_classes, not_exhaustive_classes: see `instance_record`.
      segments: ids of rows, 0 = nothing.
      ids: of the rows; None: 1, 2, ...
      rles: whole masks of the rows, as counts of run lengths; empty where all of one shows.
    """
    ids = np.asarray(np.arange(1, len(rows) + 1) if ids is None else ids, np.int64)
    counts = np.bincount(segments.ravel(), minlength=int(max(ids, default=0)) + 1)
    rows = [r._replace(area=counts[i]) if r.area is None else r for r, i in zip(rows, ids)]
    if any(r.bbox is None for r in rows):
        boxes = ndimage.find_objects(segments.astype(np.int32), int(max(ids)))
        rows = [r._replace(bbox=_box(boxes[i - 1])) if r.bbox is None else r
                for r, i in zip(rows, ids)]
    column = lambda name, dtype: np.array([getattr(r, name) for r in rows], dtype)
    return dict(
        image=image, image_id=image_id, segments=encode_png(segments),
        table=dict(
            id=ids, class_id=column("class_id", np.int64),
            is_thing=column("is_thing", bool), is_crowd=column("is_crowd", bool),
            area=column("area", np.float64), bbox=column("bbox", np.float64).reshape(-1, 4),
            source_id=column("source_id", np.int64),
            rle=[b""] * len(rows) if rles is None else rles),
        negative_classes=np.array(negative_classes, np.int64),
        not_exhaustive_classes=np.array(not_exhaustive_classes, np.int64),
        visible=counts[ids])


def _box(window: tuple[slice, slice] | None) -> tuple[int, int, int, int]:
    if window is None:
        return 0, 0, 0, 0
    rows, columns = window
    return columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start


def positions(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """For each value its position in `known` (distinct numbers), -1 if it is not there."""
    order = np.argsort(known)
    assert (np.diff(known[order]) > 0).all(), "a number is there twice"
    place = np.searchsorted(known[order], values).clip(max=len(known) - 1)
    return np.where(known[order][place] == values, order[place], -1)


def decode_segments(png: bytes) -> np.ndarray:
    """[H, W] uint16 of the `segments` of a record."""
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def decode_masks(record: typing.Mapping) -> np.ndarray:
    """[n, H, W] bool: the whole mask of every row of the table, also where another lies on it."""
    segments = decode_segments(record["segments"])
    masks = segments == np.asarray(record["table"]["id"])[:, None, None]
    for n, counts in enumerate(record["table"]["rle"]):
        if counts:
            masks[n] = _covered(counts, segments.shape, record)
    return masks


def _covered(counts: bytes | str, size: tuple[int, int], record: typing.Mapping) -> np.ndarray:
    try:
        return run_lengths.decode(dict(size=size, counts=counts))
    except ValueError as error:
        raise ValueError(f"record {id_of(record)}: a mask {error}; prepare the data set again"
                         ) from None


def decode_classes(record: typing.Mapping, void: int = -1) -> np.ndarray:
    """[H, W] int32: class of each pixel, crowds included, `void` where there is none."""
    segments, table = decode_segments(record["segments"]), record["table"]
    lookup = np.full(int(max(segments.max(initial=0), *table["id"], 0)) + 1, void, np.int32)
    lookup[np.asarray(table["id"], int)] = table["class_id"]
    return lookup[segments]


def id_of(record: typing.Mapping) -> str:
    """The id of a record's picture."""
    name = record["image_id"]
    return name.decode() if isinstance(name, bytes) else str(name)


def sizes_of(rows: typing.Sequence[typing.Mapping]) -> dict[str, tuple[int, int]]:
    """Height and width of each picture, by its id; nothing is decoded."""
    return {id_of(r): size_of(r["segments"]) for r in map(rows.__getitem__, range(len(rows)))}


class Learnable(typing.NamedTuple):
    """What can be learnt from a split: masks of which `LEARNABLE` pixels show, and no crowds."""

    bare: int                # pictures without such a mask
    masks: dict[int, int]    # how many each class has


class Source(typing.NamedTuple):
    """A split ready for reading: random access to raw records, and the names of its ids."""

    records: typing.Sequence[dict]  # image and segments as bytes, not decoded
    vocabulary: Vocabulary
    kind: str  # one of KINDS
    learnable: Learnable | None = None  # None: it was prepared before this was counted
    is_tiled: bool = False  # whether its pictures are tiles of larger ones, see `tiling`


def splits_of(data_dir: str, name: str) -> list[str]:
    """The splits of a prepared data set; raises FileNotFoundError like `open_source`."""
    return list(_open(_folder(data_dir, name), name).info.splits)


def open_source(data_dir: str, name: str, split: str) -> Source:
    """Opens a split of a prepared data set.

    Raises:
      FileNotFoundError: not prepared; says how to.
      ValueError: no such split, or the data set is damaged.
    """
    folder = _folder(data_dir, name)
    builder = _open(folder, name)
    if split not in builder.info.splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    raw = {key: tfds.decode.SkipDecoding() for key in ("image", "segments")}
    own_names = folder / NAMES_FILE
    metadata = _metadata(folder, name)
    vocabulary = (Vocabulary.from_text(own_names.read_text("utf-8"), metadata["vocabulary"])
                  if own_names.exists() else Vocabulary.shipped(metadata["vocabulary"]))
    learnable = metadata.get("usable", {}).get(split)
    if learnable is not None:
        learnable = Learnable(learnable["bare"], dict(learnable["classes"]))
    info = builder.info.splits[split]
    files = [pathlib.Path(file) for file in info.filepaths]
    for file in files:
        if not file.is_file() or file.stat().st_size < _LEAST:
            raise ValueError(f"the data set {name} is damaged: {file} is "
                             f"{'cut short' if file.is_file() else 'not there'}{_AGAIN}")
    try:
        rows = builder.as_data_source(split, decoders=raw)
    except Exception as error:  # of TFDS or of ArrayRecord
        raise ValueError(_damaged(name, folder, error)) from None
    return Source(Records(rows, f"{name} {split}", files, info.shard_lengths), vocabulary,
                  metadata["kind"], learnable, bool(metadata.get("tiles")))


class Records:
    """The records of a split, each read when asked for; damaged ones are named."""

    def __init__(self, rows: typing.Sequence[dict], name: str, files: list[pathlib.Path],
                 lengths: typing.Sequence[int]):
        self._rows, self._name, self._files = rows, name, files
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict:
        if not 0 <= place < len(self):
            raise IndexError(place)
        try:
            return self._rows[place]
        except Exception as error:  # of TFDS, ArrayRecord or protobuf
            file = self._files[np.searchsorted(self._ends, place, side="right")]
            raise ValueError(_damaged(f"{self._name}, record {place}", file, error)) from None


def _damaged(name: str, file: pathlib.Path, error: Exception) -> str:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the data set {name} is damaged: {file} cannot be read ({words}){_AGAIN}"


class _Metadata(typing.TypedDict):
    """What `data/build.py` leaves in metadata.json."""

    vocabulary: str
    kind: typing.Literal[KINDS]
    usable: typing.NotRequired[dict[str, "_Usable"]]
    content: typing.NotRequired[dict[str, list[str]]]
    tiles: typing.NotRequired[list[typed.Count]]  # their side and overlap
    made_of: typing.NotRequired[str]


class _Usable(typing.TypedDict):
    bare: typed.Count
    classes: list[tuple[typed.Count, typed.Count]]


def _metadata(folder: pathlib.Path, name: str) -> _Metadata:
    try:
        return typed.read(folder / "metadata.json", _Metadata)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"the data set {name} is damaged: {error}{_AGAIN}") from None


def _open(folder: pathlib.Path, name: str) -> "tfds.core.DatasetBuilder":
    """What TFDS knows of a prepared data set, which may come from anywhere.

    Raises:
      ValueError: it is damaged, or names classes that are not those of our records: TFDS would
        import what it names.
    """
    file, known = folder / "features.json", set(_classes_in(features().to_json()))
    try:
        named = set(_classes_in(typed.read(file, dict[str, typing.Any])))
        strange = sorted(named - known)
        if strange or not named:
            raise ValueError(f"{file} names {strange[0] if strange else 'no class'}, wanted the "
                             "classes of records that prepare writes")
        builder = tfds.builder_from_directory(folder)
        outside = [f for split in builder.info.splits.values() for f in split.filepaths
                   if pathlib.Path(f).parent != folder]
        if outside:
            raise ValueError(f"it names the file {outside[0]}, which is not in {folder}")
        return builder
    except Exception as error:  # whatever TFDS and protobuf raise
        raise ValueError(_damaged(name, folder, error)) from None


def _classes_in(node) -> typing.Iterator[str]:
    """The values of `pythonClassName` anywhere in JSON."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("pythonClassName", "python_class_name"):  # protobuf reads both
                yield str(value)
            else:
                yield from _classes_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from _classes_in(value)


def fingerprint(data_dir: str, name: str, split: str) -> str:
    """A hash of the records and the class names of a split.

    Of the record files, which may be large, it takes names, sizes and both ends (where they say
    where each record lies), and the hash of all records that `data/build.py` left.
    """
    folder = _folder(data_dir, name)
    info, metadata = _open(folder, name).info, _metadata(folder, name)
    digest = hashlib.sha1(repr(metadata.get("content", {}).get(split)).encode())
    names = folder / NAMES_FILE
    digest.update(names.read_bytes() if names.exists() else metadata["vocabulary"].encode())
    for file in sorted(map(pathlib.Path, info.splits[split].filepaths)):
        size = file.stat().st_size
        digest.update(repr((file.name, size)).encode())
        with file.open("rb") as content:
            digest.update(content.read(_END))
            content.seek(max(size - _END, 0))
            digest.update(content.read(_END))
    return digest.hexdigest()


def _folder(data_dir: str, name: str) -> pathlib.Path:
    storage.check(data_dir)
    folder = storage.path(data_dir) / name / VERSION
    if not (folder / "dataset_info.json").exists():
        remote = storage.on_bucket(data_dir)
        sent = f", and send it: gcloud storage cp -r DIR/{name} {data_dir}" if remote else ""
        raise FileNotFoundError(
            f"no data set in {folder}; make it with: maskclippp prepare {name} "
            f"--data_dir={'DIR' if remote else data_dir} (see --list for what it is made from)"
            f"{sent}")
    return pathlib.Path(storage.local_copy(folder))
