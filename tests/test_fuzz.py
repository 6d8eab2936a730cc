"""Damaged and hostile files, thousands of them: every parser gives a result or a sentence.

Mutations are seeded and know the structure of a file: archives are packed again around a changed
member, PNG chunks get the checksum of what they now hold, JSON stays JSON, and numbers become the
largest ones. A case may use so much more memory and so much time; `-m slow -s` runs tens of
thousands and prints the table of docs/reliability.md.
"""

import collections
import contextlib
import io
import json
import pickle
import resource
import signal
import struct
import time
import typing
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from maskclippp_jax import config as configuration, configs, vocabulary
from maskclippp_jax.data import bundle_writer, bundles, coco_files, images, label_maps, mask_files
from maskclippp_jax.data.prepare import folder
from maskclippp_jax.metrics import run_lengths
from maskclippp_jax.weights import files, released
from tests import test_damaged_inputs as damaged
from tests.data import test_shared
from tests.weights import test_held_files as held, test_weights

_SECONDS = 20       # of a processor, for a case
_MEMORY = 1 << 30   # bytes that a case may ask for beyond what the process has
_QUICK, _MANY = 16, 1200  # cases of each parser


class Parser(typing.NamedTuple):
    """A kind of file."""

    name: str                                                 # of a file of this kind
    content: typing.Callable[[], bytes]                       # a whole one
    read: typing.Callable[[str], object]
    mutate: typing.Callable[[bytes, np.random.Generator], bytes]


EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40,
            2**63 - 1, 2**64 - 1)


def bytes_of(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flip, numbers become extreme, stretches go, come twice or are zeros."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        # Where structure is: at either end, more often than in the middle.
        start = rng.integers(len(data))
        if rng.random() < 0.6:
            start = start % 64 if rng.random() < 0.5 else len(data) - 1 - start % 64
        start = max(0, min(int(start), len(data) - 1))
        length = int(rng.integers(1, 40))
        match rng.integers(6):
            case 0:
                data[start] ^= 1 << rng.integers(8)
            case 1:
                size, order = rng.choice([2, 4, 8]), "><"[rng.integers(2)]
                number = EXTREMES[rng.integers(len(EXTREMES))] % (1 << 8 * int(size))
                data[start:start + size] = struct.pack(
                    order + {2: "H", 4: "I", 8: "Q"}[int(size)], number)
            case 2:
                del data[start:]
            case 3:
                del data[start:start + length]
            case 4:
                data[start:start] = data[start:start + length]
            case 5:
                data[start:start + length] = bytes(min(length, len(data) - start))
    return bytes(data)


def json_of(data: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.3:
        return bytes_of(data, rng)
    return json.dumps(damaged.mutate(json.loads(data), rng)).encode()


def archive_of(data: bytes, rng: np.random.Generator) -> bytes:
    """A zip file with a changed, missing or repeated member, or one that is damaged itself."""
    if rng.random() < 0.3:
        return bytes_of(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = rng.integers(len(members))
    name, content = members[place]
    match rng.integers(8):
        case 0:
            del members[place]
        case 1:
            members[place] = (name[:-1] or "x", content)
        case _:
            members[place] = (name, bytes_of(content, rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as new:
        for name, content in members:
            new.writestr(name, content)
    return out.getvalue()


def png_of(data: bytes, rng: np.random.Generator) -> bytes:
    """A PNG with a changed chunk whose checksum is right."""
    if rng.random() < 0.3:
        return bytes_of(data, rng)
    chunks, place = [], 8
    while place < len(data):
        length = int.from_bytes(data[place:place + 4], "big")
        chunks.append((data[place + 4:place + 8], data[place + 8:place + 8 + length]))
        place += 12 + length
    number = rng.integers(len(chunks))
    kind, content = chunks[number]
    if kind == b"IDAT" and rng.random() < 0.5:
        content = zlib.compress(bytes_of(zlib.decompress(content), rng))
    else:
        content = bytes_of(content, rng)
    chunks[number] = (kind, content)
    return data[:8] + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)


def encoded(kind: str, mode: str = "RGB") -> typing.Callable[[], bytes]:
    def encode():
        rows = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(rows if mode == "RGB" else rows[..., 0] // 16).save(out, kind)
        return out.getvalue()

    return encode


def array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(192).reshape(12, 16))
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, **{"img/embedding/kernel": np.ones((2, 3), np.float32),
                     "t": np.float32(1), "img/head/bias": np.zeros(4, np.float16)})
    return out.getvalue()


def torch_archive(tmp: typing.Callable, content: bytes = test_weights.tensor_pickle(
        "FloatStorage", 4, 0, (2, 2), (2, 1))) -> bytes:
    path = test_weights.archive(tmp("whole.pt"), content, **{"0": bytes(16)})
    with open(path, "rb") as file:
        return file.read()


def with_extras(tmp: typing.Callable) -> bytes:
    return torch_archive(tmp, held.dictionary(
        state_dict=held.WEIGHTS, extras=pickle.dumps(held.EXTRAS, 2)))


def tensors(path: str) -> None:
    source = files.read(path)
    for name in source:
        np.asarray(source[name])


def masks(path: str) -> None:
    mask_files.read_masks(path, (12, 16))


def labels(path: str) -> None:
    label_maps.masks_in(mask_files.read(path, (4, 4)), None, path)


def results(path: str) -> None:
    for row in coco_files.read_results(path):
        run_lengths.read(row["segmentation"])


def text(path: str) -> None:
    vocabulary.Vocabulary.from_file(path)


def parsers(tmp: typing.Callable[[str], typing.Any]) -> list[Parser]:
    """All of them; `tmp` gives the path of a file by its name."""
    rows = [dict(segmentation=damaged.CODE), dict(segmentation=[[1, 1, 9, 1, 9, 9]])]
    truth = damaged.INSTANCES | dict(
        images=[dict(i, height=12, width=16) for i in damaged.INSTANCES["images"]])
    names = b"cat, kitten\tthing\t3\t#ff0000\ndog\tstuff\t5\nbird\n"
    dump = lambda content: lambda: json.dumps(content).encode()
    return [
        Parser("picture.png", encoded("PNG"), images.read_image, png_of),
        *(Parser(f"picture.{kind.lower()}", encoded(kind), images.read_image, bytes_of)
          for kind in ("JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")),
        Parser("labels.png", encoded("PNG", "L"), labels, png_of),
        Parser("labels.tiff", encoded("TIFF", "L"), labels, bytes_of),
        Parser("labels.npy", array, labels, bytes_of),
        Parser("segments.png", encoded("PNG"), coco_files.read_ids, png_of),
        Parser("masks.json", dump(rows), masks, json_of),
        Parser("instances.json", dump(truth), coco_files.read_instances, json_of),
        Parser("results.json", dump([dict(image_id=1, category_id=1, score=0.5,
                                          segmentation=damaged.CODE)]), results, json_of),
        Parser("names.txt", lambda: names, text, bytes_of),
        Parser("weights.safetensors", lambda: save({"a": np.ones((2, 3), np.float32)}), tensors,
               bytes_of),
        Parser("weights.npz", npz, tensors, archive_of),
        Parser("weights.pt", lambda: torch_archive(tmp), tensors, archive_of),
        Parser("extras.pt", lambda: with_extras(tmp), tensors, archive_of),
        Parser("weights.pkl", lambda: pickle.dumps({"model": {"a": np.ones((2, 3))}}), tensors,
               bytes_of),
        Parser("x.index.json", dump(dict(weight_map=dict(a="b.safetensors"))), tensors, json_of),
    ]


class Outlived(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def limits() -> typing.Iterator[None]:
    """A process that may ask for no more memory than it has and `_MEMORY`."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, before[1]))

    def late(number, frame):
        raise Outlived

    handler = signal.signal(signal.SIGPROF, late)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def run(parser: Parser, path, count: int) -> collections.Counter:
    """Outcomes of damaged files: read or refused; anything else fails."""
    whole, found, problems = parser.content(), collections.Counter(), []
    path.write_bytes(whole)
    with contextlib.suppress(FileNotFoundError if "index" in parser.name else ()):
        parser.read(str(path))  # the whole one is read
    with limits():
        for seed in range(count):
            content = parser.mutate(whole, np.random.default_rng([seed, len(whole)]))
            path.write_bytes(content)
            since = time.monotonic()
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            try:
                parser.read(str(path))
                outcome = "read"
            except (ValueError, OSError) as error:
                outcome = "refused"
                if not str(error).strip() or "\n" in str(error).strip():
                    problems.append(f"mutation {seed}: no sentence: {error!r:.300}")
            except (Exception, Outlived) as error:
                outcome = "failed"
                problems.append(f"mutation {seed}: {error!r:.300} for {content!r:.200}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            found[outcome] += 1
            found["slowest"] = max(found["slowest"], time.monotonic() - since)
    assert not problems, f"{parser.name}, {len(problems)} of {count}: " + "; ".join(problems[:5])
    assert found["refused"] > count / 20, found
    return found


def in_folders(tmp) -> list[tuple[Parser, typing.Any]]:
    """Parsers of a file among others, with its place."""
    place = tmp("bundle")
    writer = bundle_writer.Writer(
        place, masks="logits", stride=4, classes=dict(kind="closed", vocabulary=[["cat"]]),
        generator=dict(name="test"), preparation=dict(loader_min=None, loader_max=None,
                                                      short_side=None, multiple=4))
    writer.add("a", np.zeros((2, 3, 4), np.float32), [(12, 16)] * 4, np.zeros((2, 2)))
    writer.finish()
    arrays, manifest = bundle_writer.file_of(place, "a"), place / "manifest.json"

    def bundle(path):
        found = bundles.Bundle(str(place))
        for name in found.pictures:
            found.read(name)

    damaged.picture(tmp("own") / "images/p.png")
    (tmp("own") / "labels").mkdir()
    (tmp("own") / "names.txt").write_text("cat\ndog\n")
    label = tmp("own") / "labels/p.json"

    def own(path):
        data = folder.read(str(tmp("own") / "images"), str(tmp("own") / "labels"),
                           str(tmp("own") / "names.txt"))
        for items in data.reading.splits.values():
            for item in items:
                data.reading.make_records(item)

    files_of = lambda file: (lambda content=file.read_bytes(): content)
    found = [
        (Parser("bundle: a.npz", files_of(arrays), bundle, archive_of), arrays),
        (Parser("bundle: manifest.json", files_of(manifest), bundle, json_of), manifest),
        (Parser("own data: LabelMe", lambda: json.dumps(damaged.LABEL_ME).encode(), own, json_of),
         label)]
    published = tmp("published") / released.CONFIG
    published.parent.mkdir()
    published.write_text(json.dumps(released.public(configuration.to_json(
        configs.read("quickstart")))))
    found.append((Parser(f"published: {published.name}", files_of(published),
                         lambda path: released.read_config(str(published.parent)), json_of),
                  published))
    data = test_shared.make(tmp("data"))
    for name, mutate in (("features.json", json_of), ("dataset_info.json", json_of),
                         ("metadata.json", json_of), ("mine-train*", bytes_of)):
        [file] = data.glob(name)
        found.append((Parser(f"data set: {name}", files_of(file),
                             lambda path: test_shared.read(tmp("data")), mutate), file))
    return found


def check(tmp_path, count: int) -> dict[str, collections.Counter]:
    tmp = lambda name: tmp_path / name
    table = {p.name: run(p, tmp(p.name), count) for p in parsers(tmp)}
    for parser, path in in_folders(tmp):
        whole = path.read_bytes() if path.exists() else None
        table[parser.name] = run(parser, path, count)
        path.unlink() if whole is None else path.write_bytes(whole)
    return table


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged files
def test_a_few_hundred_damaged_files_give_a_result_or_a_sentence(tmp_path):
    assert len(check(tmp_path, _QUICK)) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tens_of_thousands_of_damaged_files_give_a_result_or_a_sentence(tmp_path):
    table = check(tmp_path, _MANY)
    print(f"\n| file | cases | read | refused | slowest |\n|{'---|' * 5}")
    for name, found in table.items():
        print(f"| {name} | {found['read'] + found['refused']} | {found['read']} | "
              f"{found['refused']} | {found['slowest'] * 1000:.0f} ms |")
    total = sum(found["read"] + found["refused"] for found in table.values())
    print(f"| all | {total} | | | |")
    assert total > 20000
