"""Writes data sets: TFDS folders of ArrayRecord files, on all cores and without TensorFlow.

We write the shards ourselves because TFDS needs TensorFlow for splits beyond 1000 MiB, and because
this way a build can be stopped and started again. It grows in a hidden folder beside its place:
shards appear there whole and finished ones are kept; the last step moves the folder to its place,
so a data set is whole or absent.
"""

import collections
import concurrent.futures
import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
import typing
from multiprocessing import resource_tracker

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epy

from maskclippp_jax.data import images, label_maps, records
from maskclippp_jax.runtime import progress, storage
from maskclippp_jax.runtime.console import counted
from maskclippp_jax.vocabulary import Vocabulary

with epy.lazy_imports():  # slow to import, and needed at the end of a build
    import tensorflow_datasets as tfds

_SHARD = 256       # records, about, at most
_SPREAD = 8        # shards at least, so that cores can share a small data set, if there are ...
_SMALLEST = 32     # ... this many records for each; fewer are written by this process alone
_WORKERS = 16      # processes at most: each may hold a compressed archive in memory
_EXAMPLES = 3      # masks too small to be learnt that are named
_FORM = 2          # of what is kept of finished shards
_MAX_PROBLEMS = 20  # a build stops after so many pictures that cannot be used


class Reading(typing.NamedTuple):
    """What a reader found in the raw files."""

    splits: dict[str, list]  # for each split what `make_records` turns into records; must pickle
    make_records: typing.Callable[[typing.Any], list[dict]]  # none: dropped; several: cut in tiles
    missing: typing.Sequence[str] = ()  # sentences about files that should be there
    fingerprint: str = ""  # of the raw files; a stopped build goes on if it is the same
    records_each: int = 1  # about how many records an item gives
    notes: typing.Sequence[str] = ()  # sentences about how the files were understood
    tiles: tuple[int, int] | None = None  # side and overlap, where records are tiles to be joined


class Summary(typing.NamedTuple):
    """What a split holds."""

    images: int
    dropped: int            # pictures left out by the data set's rule
    segments: int
    bytes: int
    classes: list[int]      # ids that occur
    usable: dict[int, int]  # of each class: masks that can be learnt
    bare: int               # pictures without any of them
    crowds: int             # masks marked as crowds
    tiny: int               # masks of which fewer than `records.LEARNABLE` pixels show ...
    examples: list[str]     # ... and where the first ones are
    smallest: tuple[int, int]  # height, width of the smallest and the largest picture
    largest: tuple[int, int]


class BadPictures(ValueError):
    """Pictures that cannot be used; `problems` has a sentence for each."""

    def __init__(self, message: str, problems: list[str]):
        super().__init__(message)
        self.problems = problems


def build(data_dir: str, name: str, vocabulary: Vocabulary, kind: str, reading: Reading, *,
          description: str, own_names: bool = False, overwrite: bool = False,
          check: typing.Callable[[dict[str, Summary]], None] = lambda summary: None
          ) -> dict[str, Summary]:
    """Writes a data set.

    Args:
      data_dir: folder of all data sets.
      name: of this one.
      vocabulary: the names of its class ids.
      kind: one of `records.KINDS`.
      reading: what it is made from.
      description: one line for people.
      own_names: whether the vocabulary is kept with the data set; else it is a shipped one.
      overwrite: whether an existing data set is replaced.
      check: looks at what was written before it becomes a data set; may raise.

    Raises:
      FileExistsError: the data set exists and `overwrite` is false.
      BadPictures: pictures that cannot be used; nothing is registered.
      ValueError: more classes than a record holds, two pictures with one id, no space left, or
        another process is at it.
    """
    label_maps.check_classes(vocabulary.num_classes, vocabulary.name)
    assert Vocabulary.from_text(vocabulary.to_text(), vocabulary.name).classes == vocabulary.classes
    folder = place_of(data_dir, name)
    made = [p for p in (folder.parent, *folder.parents[1:3]) if not p.exists()]
    try:
        with storage.locked(folder.parent, f"another prepare is writing {folder.parent}; wait "
                            "until it has ended, or stop it"):
            _repair(folder)
            if (folder / "dataset_info.json").exists() and not overwrite:
                raise FileExistsError(f"{folder} exists; use it, or give --overwrite to make it "
                                      "anew")
            try:
                summary = _build(
                    folder, name, vocabulary, kind, reading, description, own_names, check)
            except BaseException:
                _clear(folder, made)
                raise
    except PermissionError as error:
        raise ValueError(f"{folder.parent} cannot be written ({error.strerror}); give another "
                         "--data_dir") from None
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
        if not _is_full(error):
            raise
        raise ValueError(f"no space left for {folder}; free some and give the same command again, "
                         "what is finished is kept") from None
    return summary


def place_of(data_dir: str, name: str) -> pathlib.Path:
    """The folder of a data set."""
    return pathlib.Path(data_dir).absolute() / name / records.VERSION


def is_there(data_dir: str, name: str) -> bool:
    """Whether a data set is made; one that a killed `prepare --overwrite` put aside is brought
    back."""
    folder = place_of(data_dir, name)
    if _replaced(folder).exists():
        with storage.locked(folder.parent, f"another prepare is writing {folder.parent}; wait "
                            "until it has ended, or stop it"):
            _repair(folder)
    return (folder / "dataset_info.json").exists()


def _replaced(folder: pathlib.Path) -> pathlib.Path:
    """Where a data set waits for its removal while another one takes its place."""
    return folder.with_name(f".replaced-{folder.name}")


def _repair(folder: pathlib.Path) -> None:
    """Ends what a killed build was about when it replaced a data set."""
    replaced = _replaced(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        words in str(error) for words in ("No space left", "quota exceeded", "File too large"))


def _build(folder, name, vocabulary, kind, reading, description, own_names, check):
    growing = folder.with_name(f".incomplete-{folder.name}")
    plan = _plan(vocabulary, kind, reading)
    plan_file = growing / ".plan.json"
    if growing.exists() and (not plan_file.exists() or plan_file.read_text() != plan):
        shutil.rmtree(growing)  # begun from other files
    growing.mkdir(exist_ok=True)
    for leftover in growing.glob(".tmp-*"):  # of a killed one
        leftover.unlink(missing_ok=True)
    storage.write(plan_file, plan)

    jobs, split_of = [], []
    for split, items in reading.splits.items():
        expected = len(items) * reading.records_each
        shards = max(-(-expected // _SHARD), min(_SPREAD, -(-expected // _SMALLEST)))
        shards = min(shards, len(items))
        for i in range(shards):
            path = growing / f"{name}-{split}.array_record-{i:05d}-of-{shards:05d}"
            part = slice(i * len(items) // shards, (i + 1) * len(items) // shards)
            jobs.append((str(path), items[part], reading.make_records))
            split_of.append(split)
    results = _run(jobs, f"preparing {name}", reading.records_each)
    rows = {split: [r for s, r in zip(split_of, results) if s == split]
            for split in reading.splits}
    _check_ids(rows)
    summary = {split: _summary(r) for split, r in rows.items()}
    if not all(s.images for s in summary.values()):
        raise ValueError(f"no picture of {name} is left in one of {', '.join(summary)}: all were "
                         "left out because they have no class; give more pictures")
    check(summary)

    infos = [tfds.core.SplitInfo(
        name=split, shard_lengths=[r["images"] for r in rows[split]],
        num_bytes=summary[split].bytes,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=growing, dataset_name=name, split=split, filetype_suffix="array_record"))
        for split in rows]
    if own_names:
        (growing / records.NAMES_FILE).write_text(vocabulary.to_text(), "utf-8")
    tfds.folder_dataset.write_metadata(
        data_dir=growing, features=records.features(), split_infos=infos, version=records.VERSION,
        check_data=False, description=description,
        metadata=tfds.core.MetadataDict(
            vocabulary=vocabulary.name, kind=kind, made_of=_made_of(plan),
            **(dict(tiles=list(reading.tiles)) if reading.tiles else {}),
            content={split: [r["content"] for r in rows[split]] for split in rows},
            usable={split: dict(bare=s.bare, classes=sorted(s.usable.items()))
                    for split, s in summary.items()}))
    for leftover in growing.glob(".*"):
        leftover.unlink()
    storage.sync_all(growing)
    if folder.exists():
        folder.rename(_replaced(folder))
    growing.rename(folder)
    storage.sync(folder.parent)
    _repair(folder)
    return summary


def _plan(vocabulary: Vocabulary, kind: str, reading: Reading) -> str:
    """All that decides what will be written."""
    return json.dumps(dict(form=_FORM, raw=reading.fingerprint, vocabulary=vocabulary.to_text(),
                           kind=kind, tiles=reading.tiles,
                           splits={k: len(v) for k, v in reading.splits.items()}))


def _made_of(plan: str) -> str:
    return hashlib.sha1(plan.encode()).hexdigest()


def made_of_others(data_dir: str, name: str, vocabulary: Vocabulary, kind: str, reading: Reading
                   ) -> bool:
    """Whether a data set that exists was made of other files or in another way, as far as it tells.
    """
    metadata = place_of(data_dir, name) / "metadata.json"
    try:
        known = json.loads(metadata.read_text()).get("made_of")
    except (OSError, ValueError, AttributeError):  # opening it says what is wrong
        return False
    return known not in (None, _made_of(_plan(vocabulary, kind, reading)))


def _clear(folder: pathlib.Path, made: typing.Sequence[pathlib.Path]) -> None:
    """After a failure: keeps finished shards, and leaves nothing if there is none."""
    growing = folder.with_name(f".incomplete-{folder.name}")
    if not any(growing.glob("*.array_record-*")):
        shutil.rmtree(growing, ignore_errors=True)
        with contextlib.suppress(OSError):  # of folders that are not empty
            if folder.parent in made:
                (folder.parent / ".lock").unlink()
            for place in made:
                place.rmdir()


def _run(jobs: list[tuple], title: str, records_each: int) -> list[dict]:
    """Writes all shards, on all cores if it is worth starting them, and shows how far it is."""
    total = sum(len(items) for _, items, _ in jobs)
    results: dict[int, dict] = {}
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        if total * records_each <= _SMALLEST or len(jobs) == 1:
            finished = ((k, _write_shard(*job)) for k, job in enumerate(jobs))
        else:
            pending = stack.enter_context(_in_workers(jobs))
            finished = ((pending[future], future.result())
                        for future in concurrent.futures.as_completed(pending))
        for k, facts in progress.track(finished, title, total=total,
                                       step=lambda done: len(jobs[done[0]][1])):
            results[k] = facts
            problems += facts["problems"]
            if len(problems) >= _MAX_PROBLEMS:
                break
    if problems:
        count = f"{len(problems)} or more" if len(problems) >= _MAX_PROBLEMS else f"{len(problems)}"
        raise BadPictures(f"{count} of {counted(total, 'picture')} cannot be used; mend or remove "
                          f"{'it' if len(problems) == 1 else 'them'} and give the same command "
                          "again, what is finished is kept", problems)
    return [results[k] for k in range(len(jobs))]


@contextlib.contextmanager
def _in_workers(jobs: list[tuple]) -> typing.Iterator[dict[concurrent.futures.Future, int]]:
    """The shards that processes of their own write, and their numbers; none outlives the block."""
    others = set(multiprocessing.active_children())
    # Ctrl-C reaches every process of a terminal; they inherit that they do not get it, so that
    # this one alone says what has happened.
    resource_tracker.ensure_running()  # which would let Ctrl-C through again when it starts
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        workers = concurrent.futures.ProcessPoolExecutor(
            min(os.cpu_count() or 1, _WORKERS, len(jobs)),
            initializer=_begin, initargs=(images.limit_pixels(),),
            mp_context=multiprocessing.get_context("spawn"))
        pending = {workers.submit(_write_shard, *job): k for k, job in enumerate(jobs)}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield pending
    except (KeyboardInterrupt, SystemExit):
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        workers.shutdown(cancel_futures=True)


def _begin(max_pixels: int) -> None:
    """Lets a process that writes shards end when the one that started it does, however it ends."""
    images.limit_pixels(max_pixels)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_shard(path: str, items: typing.Sequence, make_records: typing.Callable) -> dict:
    """Writes one shard and what it holds; both appear whole. A finished shard is left alone."""
    file = pathlib.Path(path)
    facts_file = file.with_name(f".{file.name}.json")
    if file.exists() and facts_file.exists():
        return json.loads(facts_file.read_text())
    # A process that ends a little after its killed `prepare` must not share a name with the next.
    temporary = file.with_name(f".tmp-{os.getpid()}-{file.name}")
    # One record a group: readers jump to single records.
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    size, dropped, segments, classes, shapes, ids, problems = 0, 0, 0, set(), [], [], []
    usable, bare, crowds, tiny, examples = collections.Counter(), 0, 0, 0, []
    content = hashlib.sha1()
    for item in items:
        try:
            made = make_records(item)
            for record in made:
                _check_size(record)
        except ValueError as error:
            problems.append(" ".join(str(error).split()))
            if len(problems) >= _MAX_PROBLEMS:
                break
            continue
        dropped += not made
        for record in made:
            table, visible = record["table"], record.pop("visible")
            classes.update(table["class_id"].tolist())
            segments += len(table["id"])
            seen = visible >= records.LEARNABLE
            learnable = seen & ~table["is_crowd"]
            usable.update(table["class_id"][learnable].tolist())
            bare += not learnable.any()
            crowds += int(table["is_crowd"].sum())
            tiny += int((~seen).sum())
            examples += [f"{record['image_id']}, annotation {number}" for number in
                         table["source_id"][~seen][:_EXAMPLES - len(examples)].tolist()]
            shapes.append(images.size_of(record["segments"]))
            ids.append(record["image_id"])
            data = records.serialize(record)
            writer.write(data)
            size += len(data)
            content.update(data)
    writer.close()
    if problems:
        temporary.unlink()
        return dict(problems=problems)
    shapes.sort(key=lambda s: s[0] * s[1])
    facts = dict(
        images=len(ids), dropped=dropped, segments=segments, bytes=size, classes=sorted(classes),
        smallest=shapes[0] if shapes else None, largest=shapes[-1] if shapes else None, ids=ids,
        usable=list(usable.items()), bare=bare, crowds=crowds, tiny=tiny, examples=examples,
        content=content.hexdigest(), problems=[])
    storage.sync(temporary)
    temporary.replace(file)
    storage.write(facts_file, json.dumps(facts))
    return facts


def _check_size(record: dict) -> None:
    (height, width), labelled = (images.size_of(record[k]) for k in ("image", "segments"))
    if (height, width) != labelled:
        turned = ("; is it of the picture before its EXIF orientation?"
                  if labelled == (width, height) else "")
        raise ValueError(f"{record['image_id']}: the picture has {width}x{height} pixels, its "
                         f"annotation {labelled[1]}x{labelled[0]}{turned}")


def _check_ids(rows: dict[str, list[dict]]) -> None:
    for split, shards in rows.items():
        seen = set()
        for name in (i for shard in shards for i in shard["ids"]):
            if name in seen:
                raise ValueError(f"two pictures of {split} have the id {name}; give each one of "
                                 "its own")
            seen.add(name)


def _summary(rows: list[dict]) -> Summary:
    area = lambda shape: shape[0] * shape[1]
    total = lambda key: sum(r[key] for r in rows)
    usable: collections.Counter[int] = collections.Counter()
    for r in rows:
        usable.update(dict(r["usable"]))
    shapes = [tuple(r[key]) for r in rows for key in ("smallest", "largest") if r[key]] or [(0, 0)]
    return Summary(
        images=total("images"), dropped=total("dropped"), segments=total("segments"),
        bytes=total("bytes"), classes=sorted({c for r in rows for c in r["classes"]}),
        usable=dict(usable), bare=total("bare"), crowds=total("crowds"), tiny=total("tiny"),
        examples=[e for r in rows for e in r["examples"]][:_EXAMPLES],
        smallest=min(shapes, key=area), largest=max(shapes, key=area))
