"""Data sets on disk: TFDS folders of ArrayRecord files, written and read without TensorFlow.

`<data_dir>/<name>/1.0.0/` is an ordinary TFDS data set (`tfds.builder_from_directory` reads it). We
write the shards ourselves because TFDS needs TensorFlow for splits beyond 1000 MiB, and because
this way a build uses all cores and can be stopped and started again: shards appear whole, finished
ones are kept, and the data set exists once `dataset_info.json` does, which is written last.

A record holds the picture as JPEG or PNG bytes, `segments` (PNG, uint16: 0 = nothing, else the id
of a segment), and one row of `table` for each segment.
"""

import concurrent.futures
import io
import json
import multiprocessing
import pathlib
import shutil
import typing

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from rich.progress import Progress

VERSION = "1.0.0"
_SHARD = 256  # records

FEATURES = tfds.features.FeaturesDict({
    "image": tfds.features.Image(shape=(None, None, 3)),
    "image_id": tfds.features.Text(),
    "segments": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
    "table": tfds.features.Sequence({
        "id": np.int64, "class_id": np.int64, "is_thing": np.bool_, "is_crowd": np.bool_}),
})


class Summary(typing.NamedTuple):
    """What a split holds."""

    images: int
    bytes: int
    classes: list[int]      # ids that occur
    smallest: tuple[int, int]  # height, width of the smallest and the largest picture
    largest: tuple[int, int]


def semantic_record(image: bytes, image_id: str, label: np.ndarray, is_thing: typing.Sequence[bool],
                    void: int = 255) -> dict:
    """A record with one segment for each class of a label map, classes ascending.

    Args:
      image: encoded JPEG or PNG.
      image_id: unique in the data set.
      label: [H, W] integer class ids, `void` = nothing.
      is_thing: for each class.
      void: the value that is no class.
    """
    present = [int(c) for c in np.unique(label) if c != void]
    segments = np.where(label == void, 0, label.astype(np.int32) + 1).astype(np.uint16)
    return dict(
        image=image, image_id=image_id, segments=encode_png(segments),
        table=dict(id=[c + 1 for c in present], class_id=present,
                   is_thing=[bool(is_thing[c]) for c in present], is_crowd=[False] * len(present)))


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of a [H, W] uint8/uint16 map or a [H, W, 3] uint8 RGB picture."""
    if array.ndim == 3:
        array = array[..., ::-1]
    ok, data = cv2.imencode(".png", array)
    assert ok
    return data.tobytes()


def decode_segments(png: bytes) -> np.ndarray:
    """[H, W] uint16 of the `segments` of a record."""
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def build(data_dir: str, name: str, vocabulary: str,
          splits: typing.Mapping[str, typing.Sequence], make_record: typing.Callable[..., dict], *,
          source: str, description: str, overwrite: bool = False) -> dict[str, Summary]:
    """Writes a data set.

    Args:
      data_dir: folder of all data sets.
      name: of this one.
      vocabulary: name of the shipped names file its class ids belong to.
      splits: for each split the items that `make_record` turns into records; both must pickle.
      make_record: item -> record, as `semantic_record` makes it.
      source: what it is made from; a build that was stopped goes on only with the same source.
      description: one line for people.
      overwrite: whether an existing data set is replaced.

    Raises:
      FileExistsError: the data set exists and `overwrite` is false.
    """
    folder = pathlib.Path(data_dir).absolute() / name / VERSION
    if (folder / "dataset_info.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} exists; use it, or give --overwrite to make it anew")
    progress_file = folder / ".source.json"
    plan = dict(source=source, splits={k: len(v) for k, v in splits.items()})
    if folder.exists() and (overwrite or not progress_file.exists()
                            or json.loads(progress_file.read_text()) != plan):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    progress_file.write_text(json.dumps(plan))
    for leftover in folder.glob(".tmp-*"):
        leftover.unlink()

    jobs = []
    for split, items in splits.items():
        shards = max(1, -(-len(items) // _SHARD))
        for i in range(shards):
            shard = f"{name}-{split}.array_record-{i:05d}-of-{shards:05d}"
            jobs.append((split, str(folder / shard), items[i * _SHARD:(i + 1) * _SHARD],
                         make_record))
    found: dict[str, list] = {split: [] for split in splits}
    context = multiprocessing.get_context("spawn")
    with Progress(transient=True) as bar, concurrent.futures.ProcessPoolExecutor(
            mp_context=context) as workers:
        task = bar.add_task(f"preparing {name}", total=sum(map(len, splits.values())))
        pending = {workers.submit(_write_shard, *job[1:]): k for k, job in enumerate(jobs)}
        results: dict[int, dict] = {}
        try:
            for future in concurrent.futures.as_completed(pending):
                results[pending[future]] = future.result()
                bar.advance(task, results[pending[future]]["images"])
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    for k, job in enumerate(jobs):
        found[job[0]].append(results[k])

    infos = [tfds.core.SplitInfo(
        name=split, shard_lengths=[r["images"] for r in rows],
        num_bytes=sum(r["bytes"] for r in rows),
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"))
        for split, rows in found.items()]
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=FEATURES, split_infos=infos, version=VERSION, check_data=False,
        description=description, metadata=tfds.core.MetadataDict(vocabulary=vocabulary))
    for leftover in folder.glob(".*.json"):
        leftover.unlink()
    return {split: _summary(rows) for split, rows in found.items()}


def _write_shard(path: str, items: typing.Sequence, make_record: typing.Callable) -> dict:
    """Writes one shard and what it holds; both appear whole. A finished shard is left alone."""
    file = pathlib.Path(path)
    facts_file = file.with_name(f".{file.name}.json")
    if file.exists() and facts_file.exists():
        return json.loads(facts_file.read_text())
    temporary = file.with_name(f".tmp-{file.name}")
    # One record a group: readers jump to single records.
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    size, classes, shapes = 0, set(), []
    for item in items:
        record = make_record(item)
        classes.update(record["table"]["class_id"])
        shapes.append(decode_segments(record["segments"]).shape)
        data = FEATURES.serialize_example(record | {
            key: io.BytesIO(record[key]) for key in ("image", "segments")})
        writer.write(data)
        size += len(data)
    writer.close()
    shapes.sort(key=lambda s: s[0] * s[1])
    facts = dict(images=len(items), bytes=size, classes=sorted(classes),
                 smallest=shapes[0] if shapes else (0, 0), largest=shapes[-1] if shapes else (0, 0))
    temporary.replace(file)
    facts_file.write_text(json.dumps(facts))
    return facts


def _summary(rows: list[dict]) -> Summary:
    area = lambda shape: shape[0] * shape[1]
    return Summary(
        images=sum(r["images"] for r in rows), bytes=sum(r["bytes"] for r in rows),
        classes=sorted({c for r in rows for c in r["classes"]}),
        smallest=tuple(min((r["smallest"] for r in rows), key=area)),
        largest=tuple(max((r["largest"] for r in rows), key=area)))


class Source(typing.NamedTuple):
    """A split ready for reading: random access to raw records, and whose names its ids are."""

    records: typing.Sequence[dict]  # image and segments as bytes, not decoded
    vocabulary: str


def open_source(data_dir: str, name: str, split: str) -> Source:
    """Opens a split of a prepared data set.

    Raises:
      FileNotFoundError: not prepared; says how to.
      ValueError: no such split.
    """
    folder = pathlib.Path(data_dir).absolute() / name / VERSION
    if not (folder / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"no data set in {folder}; make it with: python -m maskclippp_jax.prepare {name} "
            f"--data_dir={data_dir} (see --list for what it is made from)")
    builder = tfds.builder_from_directory(folder)
    if split not in builder.info.splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    raw = {key: tfds.decode.SkipDecoding() for key in ("image", "segments")}
    return Source(builder.as_data_source(split, decoders=raw), builder.info.metadata["vocabulary"])
