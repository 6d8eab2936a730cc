"""Checkpoints as people hold them: with extras beside the weights, prefixes, parts, no ending."""

import argparse
import collections
import dataclasses
import datetime
import enum
import json
import os
import pathlib
import pickle
import subprocess
import uuid

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskclippp_jax import weights
from maskclippp_jax.models import maskclippp
from maskclippp_jax.weights import files
from tests.weights import test_sources
from tests.weights.test_weights import Evil, archive, tensor_pickle

NUMBERS = np.arange(4, dtype=np.float32)


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Settings:
    rate: float
    place: pathlib.PurePosixPath


class Attributes(dict):
    """As libraries of settings have them."""


EXTRAS = dict(
    args=argparse.Namespace(lr=1e-3, place=pathlib.Path("/x"), names={"a", "b"}),
    settings=Settings(0.1, pathlib.PurePosixPath("y")), attributes=Attributes(a=1, b=[2]),
    optimizer=dict(param_groups=[dict(lr=np.float64(1e-4))]), kind=np.dtype("float16"),
    array=np.arange(3), objects=np.array([None, "x"], object), drawn=np.random.RandomState(0),
    generator=np.random.default_rng(0), when=datetime.datetime(2024, 11, 1), colour=Colour.RED,
    states=collections.defaultdict(list, {0: [1]}), last=collections.deque([1], maxlen=2),
    counts=collections.Counter("aab"), frozen=frozenset([1]), part=slice(1, 2), z=1 + 2j,
    number=uuid.UUID(int=1), raw=bytearray(b"x"), kinds=[Settings, print])


def body(pickled: bytes) -> bytes:
    """Without protocol, length (of newer protocols) and end."""
    return pickled[11 if pickled[2] == 0x95 else 2:-1]


def dictionary(**parts: bytes) -> bytes:
    """The pickle of a dictionary whose values have these pickles."""
    items = (b"X" + len(key).to_bytes(4, "little") + key.encode() + body(value) + b"s"
             for key, value in parts.items())
    return b"\x80\x02}" + b"".join(items) + b"."


WEIGHTS = tensor_pickle("FloatStorage", 4, 0, (4,), (1,))  # {"t": tensor}


def same(path):
    source = files.read(str(path))
    assert source.shapes == {"t": (4,)}
    np.testing.assert_array_equal(source["t"], NUMBERS)


@pytest.mark.parametrize("key", ["model", "module", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_lies_beside_the_weights_is_skipped(tmp_path, key, protocol):
    content = dictionary(**{key: WEIGHTS}, extras=pickle.dumps(EXTRAS, protocol))
    for file in ("x.pt", "x", "x.ckpt"):
        same(archive(tmp_path / file, content, **{"0": NUMBERS.tobytes()}))


class Popen:
    def __reduce__(self):
        return subprocess.Popen, (["touch", "/tmp/hacked"],)


class Getattr:
    def __reduce__(self):
        return getattr, ("x", "upper")


@pytest.mark.parametrize("hostile, asks", [
    (Evil(), "posix.system"), (Popen(), "commands.Popen"), (Getattr(), "__builtin__.getattr"),
    (dict(a=[Settings(Evil(), None)]), "posix.system")])
def test_a_call_among_the_extras_is_refused_and_not_run(tmp_path, hostile, asks):
    content = dictionary(state_dict=WEIGHTS, extra=pickle.dumps(hostile, 2))
    with pytest.raises(ValueError, match=f"is refused: .* but it asks for {asks}"):
        files.read(archive(tmp_path / "x.pt", content, **{"0": NUMBERS.tobytes()}))
    assert not os.path.exists("/tmp/hacked")


@pytest.mark.parametrize("named", [
    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"c__torch__\nM\n",
    b"ccollections\ndefaultdict\n", b"ccollections\nOrderedDict\n", b"c__builtin__\ndict\n"])
def test_no_file_changes_how_the_next_one_is_read(tmp_path, named):
    """A pickle may set attributes of what it named: a class, a function."""
    fills = b"\x80\x02" + named + b"N}X\x05\x00\x00\x00dtypeK\x01s\x86b."
    with pytest.raises(ValueError, match="is refused"):
        files.read(archive(tmp_path / "x.pt", fills))
    same(archive(tmp_path / "y.pt", WEIGHTS, **{"0": NUMBERS.tobytes()}))


def test_a_pickle_of_very_many_names_is_refused(tmp_path):
    names = b"".join(b"ca\nb%d\n0" % i for i in range(1001))
    with pytest.raises(ValueError, match="it names more than 1000 classes"):
        files.read(archive(tmp_path / "x.pt", b"\x80\x02" + names + b"}."))


def test_a_whole_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds a whole .*test_held_files.Settings, wanted a dict"):
        files.read(archive(tmp_path / "x.pt", pickle.dumps(Settings(1, None), 2)))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "module.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_are_cut(tmp_path, prefix):
    save_file({f"{prefix}t": NUMBERS}, tmp_path / "x.safetensors")
    same(tmp_path / "x.safetensors")
    save_file({f"{prefix}t": NUMBERS, "other": NUMBERS}, tmp_path / "x.safetensors")
    assert set(files.read(str(tmp_path / "x.safetensors"))) == {f"{prefix}t", "other"}


@pytest.mark.parametrize("image, layout", [
    (test_sources.VIT, "open_clip"), (test_sources.EVA, "eva_clip"), (test_sources.EVA, "timm"),
    (test_sources.EVA, "maskclippp")])
def test_the_scale_of_logits_may_be_a_list_of_one(tmp_path, image, layout):
    model = maskclippp.MaskCLIPppConfig(image, test_sources.TEXT, None)
    params = test_sources.random_params(model)
    named = weights.export(params, model, layout)
    [name] = [k for k in named if k.endswith("logit_scale") and not named[k].shape]
    save_file(named | {name: named[name].reshape(1)}, tmp_path / "x.safetensors")
    back, _ = weights.load_weights(str(tmp_path / "x.safetensors"), model,
                                   test_sources.shapes_of(model))
    np.testing.assert_array_equal(back["logit_scale"], params["logit_scale"])


def test_a_file_without_an_ending_is_what_it_begins_as(tmp_path):
    """As the hub's cache names its files."""
    save_file({"t": NUMBERS}, tmp_path / "0123abcd")
    same(tmp_path / "0123abcd")


def test_parts_of_a_checkpoint_belong_together(tmp_path):
    names = [f"m-{i:05}-of-00002.safetensors" for i in (1, 2)]
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps(dict(weight_map={"model.t": names[0], "model.u": names[1]})))
    save_file({"model.t": NUMBERS}, tmp_path / names[0])
    with pytest.raises(FileNotFoundError, match="m.safetensors.index.json is the list of 2 files, "
                                                f"of which {names[1]} is not here; download all"):
        files.read(str(index))
    with pytest.raises(ValueError, match="is one of the 2 files of a checkpoint; give their index, "
                                         "m.safetensors.index.json"):
        files.read(str(tmp_path / names[0]))
    save_file({"model.u": NUMBERS}, tmp_path / names[1])
    assert set(files.read(str(index))) == {"t", "u"}
