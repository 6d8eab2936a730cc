"""Reading and writing published layouts, without torch and without trusting the file."""

import dataclasses
import os
import pathlib
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from maskclippp_jax import params as parameters, weights
from maskclippp_jax.models import eva_vit, maskclippp, similarity, text
from maskclippp_jax.weights import rules
from maskclippp_jax.weights.torch_file import TorchFile

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "encoders"
EVA = str(GOLDEN / "ckpt_eva_pretrained.pt")
TUNED = str(GOLDEN / "ckpt_maskclippp_finetuned.pth")


def model_of(source) -> maskclippp.MaskCLIPppConfig:
    """The model of the two small stored checkpoints."""
    width = (source["psm.corr_proj_in.0.weight"].shape if "psm.corr_proj_in.0.weight" in source
             else None)
    head = None if width is None else similarity.LinearSimilarityConfig(width[1], width[0])
    return maskclippp.MaskCLIPppConfig(
        eva_vit.EvaViTConfig(image_size=64, patch_size=8, width=32, depth=3, num_heads=2,
                             mlp_width=85, embed_dim=24, mask_layers=2),
        text.TextConfig(context_length=16, vocab_size=600, width=32, depth=2, num_heads=2,
                        embed_dim=24), head)


def shapes_of(model) -> dict:
    return parameters.abstract(lambda: maskclippp.MaskCLIPpp(model, rngs=parameters.Keys(0)))[1]


@pytest.mark.parametrize("file", [EVA, TUNED])
def test_a_round_trip_is_bit_equal(file):
    source = weights.read(file)
    model = model_of(source)
    layout = weights.layout_of(source, file)
    table = weights.rules_for(layout, model)
    params, _ = rules.load(source, table, shapes_of(model), absent=weights.ABSENT)
    back = weights.export(params, model, layout)
    left_out = {k for k in source if not rules.paths_for(k, table)}
    assert set(back) == set(source)  # EVA-CLIP loads no file that lacks one
    assert all("rope" in k for k in left_out) and len(left_out) in (0, 8)
    for name, array in back.items():
        assert array.dtype == source[name].dtype and array.shape == source[name].shape
        np.testing.assert_allclose(array, source[name], rtol=0,
                                   atol=2e-6 if name in left_out else 0)


def test_rotary_tables_of_another_grid_are_refused(tmp_path):
    source = {k: np.array(x) for k, x in weights.read(EVA).items()}
    model = model_of(source)
    image = dataclasses.replace(model.image, rotary_grid=8)
    other = dataclasses.replace(model, image=image)
    save_file(source, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="visual.rope.freqs_cos is not what it is in an unpub"):
        weights.load_weights(str(tmp_path / "x.safetensors"), other, shapes_of(other))


def test_a_tuned_file_without_text_tower_asks_for_the_pretrained_clip(tmp_path):
    source = weights.read(TUNED)
    model = model_of(source)
    shapes = shapes_of(model)
    part = {k: np.array(source[k]) for k in source if not k.startswith("text_encoder.")}
    file = str(tmp_path / "part.safetensors")
    save_file(part, file)
    with pytest.raises(ValueError, match="holds no text tower"):
        weights.load_weights(file, model, shapes)
    params, missing = weights.load_weights(file, model, shapes, base=EVA)
    assert not missing
    np.testing.assert_array_equal(params["text"]["token_embedding"],
                                  weights.read(EVA)["text.token_embedding.weight"])
    np.testing.assert_array_equal(params["image"]["class_token"],
                                  part["visual_encoder.proxy.cls_token"][0, 0])


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4", ml_dtypes.bfloat16])
def test_what_was_read_lies_in_order_where_a_cpu_takes_it_without_a_copy(dtype):
    random = np.random.default_rng(0).standard_normal
    source = {name: random(shape).astype(dtype) for name, shape in dict(
        one=(70, 33), row=(1, 9), two=(12, 5), conv=(4, 3, 2, 2), none=(0, 3), number=()).items()}
    table = (rules.Rule("one", "one", rules.linear), rules.Rule("row", "row", rules.linear),
             rules.Rule("two", ("x", "y"), rules.linear), rules.Rule("conv", "conv", rules.conv),
             rules.Rule("none", "none", rules.linear), rules.Rule("number", "number"))
    wanted = dict(one=source["one"].T, row=source["row"].T, x=source["two"][:6].T,
                  y=source["two"][6:].T, conv=source["conv"].transpose(2, 3, 1, 0),
                  none=source["none"].T, number=source["number"])
    found, _ = rules.load(source, table, {
        path: jax.ShapeDtypeStruct(x.shape, np.float32) for path, x in wanted.items()})
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        np.testing.assert_array_equal(array, wanted[path].astype(np.float32), strict=True)
        taken = jax.device_put(array, jax.devices("cpu")[0])
        assert not array.size or taken.unsafe_buffer_pointer() == array.ctypes.data


def test_all_problems_are_listed_together():
    source = {k: np.array(v) for k, v in weights.read(TUNED).items()}
    model = model_of(source)
    del source["psm.corr_proj_out.0.bias"]
    source["visual_encoder.proxy.norm.weight"] = np.zeros(31, np.float32)
    source["visual_encoder.proxy.extra"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as error:
        rules.load(source, weights.rules_for("maskclippp", model), shapes_of(model), name="x.pth")
    message = str(error.value)
    assert "x.pth does not fit the model (3 problems)" in message
    assert "similarity/corr_out/bias: not in the file" in message
    assert ("visual_encoder.proxy.norm.weight: shape (31,) for image/norm/scale, wanted (32,)"
            in message)
    assert "visual_encoder.proxy.extra: unknown here" in message


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/hacked",)


def archive(path, content: bytes, **files: bytes):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x/data.pkl", content)
        for name, data in files.items():
            z.writestr(f"x/data/{name}", data)
    return str(path)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    for i, content in enumerate((pickle.dumps(Evil()), pickle.dumps({"model": {"a": Evil()}}),
                                 b"cbuiltins\neval\n(V1+1\ntR.")):
        with pytest.raises(ValueError, match="refused: a checkpoint may hold tensors.*it asks for "
                                             "(posix.system|builtins.eval)"):
            TorchFile(archive(tmp_path / f"{i}.pt", content))
    assert not os.path.exists("/tmp/hacked")


@pytest.mark.parametrize("content, words", [
    (b"", "is empty"), (b"<html>sign in</html>", "is a web page"), (b"PK\x03\x04cut", "cut short"),
    (pickle.dumps({"a": 1}), "older than 1.6")])
def test_what_is_no_checkpoint_is_named(tmp_path, content, words):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        TorchFile(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("ending", ["pt", "safetensors", "npz", "pkl"])
def test_what_lies_in_the_place_of_a_checkpoint_is_named(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    for content, words in (
            (b"", "is empty"), (b"\n<!doctype html>", "is a web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            weights.read(str(path))
    with pytest.raises(ValueError, match="is a folder, wanted a checkpoint"):
        weights.read(str(tmp_path))


def test_a_header_that_looks_like_a_web_page_is_none(tmp_path):
    """The length of a .safetensors file's header is its first bytes: here 0x3c20, " <"."""
    file = tmp_path / "x.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(0x3c20)
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert list(weights.read(str(file))) == ["a"]
    other = file.rename(tmp_path / "x.pt")  # as some people call it
    assert list(weights.read(str(other))) == ["a"]


def test_whole_numbers_are_no_weights(tmp_path):
    """Quantised weights without their scales would be read as if they were the weights."""
    shapes = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(ValueError, match="a: int8 for a, wanted floats"):
        rules.load({"a": np.ones(2, np.int8)}, [rules.Rule("a", "a")], shapes)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    data = pathlib.Path(EVA).read_bytes()
    (tmp_path / "x.pt").write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="cut short"):
        TorchFile(str(tmp_path / "x.pt"))
    with pytest.raises(FileNotFoundError, match="no file"):
        TorchFile(str(tmp_path / "none.pt"))


def tensor_pickle(storage: str, size: int, offset: int, shape, strides) -> bytes:
    """The pickle torch writes for {"t": tensor}."""
    numbers = lambda xs: b"(" + b"".join(b"K" + bytes([x]) for x in xs) + b"t"
    return (b"\x80\x02}X\x01\x00\x00\x00tctorch._utils\n_rebuild_tensor_v2\n(("
            b"X\x07\x00\x00\x00storagectorch\n" + storage.encode() + b"\nX\x01\x00\x00\x000"
            b"X\x03\x00\x00\x00cpuK" + bytes([size]) + b"tQK" + bytes([offset]) + numbers(shape)
            + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtRs.")


def test_strides_offsets_and_half_precision_are_understood(tmp_path):
    numbers = np.arange(8, dtype=np.float16)
    file = TorchFile(archive(tmp_path / "x.pt", tensor_pickle("HalfStorage", 8, 1, (3, 2), (1, 3)),
                             **{"0": numbers.tobytes()}))
    assert file["t"].dtype == np.float16
    np.testing.assert_array_equal(file["t"], [[1, 4], [2, 5], [3, 6]])
    bits = (np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    file = TorchFile(archive(tmp_path / "y.pt", tensor_pickle("BFloat16Storage", 2, 0, (2,), (1,)),
                             **{"0": bits.tobytes()}))
    np.testing.assert_array_equal(file["t"].astype(np.float32), [1.5, -2.0])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_may_be_compressed_and_every_byte_of_numbers_is_checked(tmp_path, compression):
    numbers, path = np.arange(100, 108, dtype=np.float32), tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("x/data.pkl", tensor_pickle("FloatStorage", 8, 0, (8,), (1,)))
        z.writestr("x/data/0", numbers.tobytes())
    np.testing.assert_array_equal(TorchFile(str(path))["t"], numbers)
    with zipfile.ZipFile(path) as z:  # the first byte behind what `header_offset` points at
        start = z.getinfo("x/data/0").header_offset + 30 + len("x/data/0")
    content = bytearray(path.read_bytes())
    content[start + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.pt is damaged: the numbers of 't' cannot be read"):
        TorchFile(str(path))["t"]


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    file = TorchFile(archive(tmp_path / "x.pt", tensor_pickle("FloatStorage", 2, 1, (2,), (1,)),
                             **{"0": np.zeros(2, np.float32).tobytes()}))
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        file["t"]


def test_sizes_are_checked_before_anything_is_copied(tmp_path):
    """A stride of 0 makes any size of one number; shapes of a damaged file go beyond all bounds."""
    four = np.zeros(4, np.float32).tobytes()
    content = tensor_pickle("FloatStorage", 4, 0, (255, 255), (0, 0))
    file = TorchFile(archive(tmp_path / "x.pt", content, **{"0": four}))
    assert file.shapes["t"] == (255, 255)
    with pytest.raises(ValueError, match="of the shape .255, 255. has only 4 numbers in the file"):
        file["t"]
    repeated = TorchFile(archive(tmp_path / "y.pt", tensor_pickle(
        "FloatStorage", 4, 0, (1, 4), (0, 1)), **{"0": four}))
    assert repeated["t"].shape == (1, 4)  # as torch stores what was expanded
    huge = content.replace(b"(K\xffK\xfft", b"(\x8a\x09" + (2**63).to_bytes(9, "little") + b"t", 1)
    huge = huge.replace(b"(K\x00K\x00t", b"(K\x00t", 1)
    with pytest.raises(ValueError, match="refused: .* a tensor has the shape .9223372036854775808"):
        TorchFile(archive(tmp_path / "z.pt", huge, **{"0": four}))


def test_a_member_that_claims_gigabytes_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    archive(path, tensor_pickle("FloatStorage", 4, 0, (4,), (1,)), **{"0": bytes(16)})
    content = path.read_bytes()
    place = content.rindex(b"PK\x01\x02") + 20  # stored bytes, in the list at the end
    assert content[place:place + 4] == (16).to_bytes(4, "little")
    path.write_bytes(content[:place] + (2**31).to_bytes(4, "little") + content[place + 4:])
    with pytest.raises(ValueError, match="the numbers of 't' cannot be read .it should have more"):
        TorchFile(str(path))["t"]


def test_a_module_that_holds_itself_ends(tmp_path):
    """As TorchScript writes modules: m.self = m."""
    cycle = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x04\x00\x00\x00selfh\x00sb."
    assert not len(TorchFile(archive(tmp_path / "x.pt", cycle)))


def test_a_pickle_that_asks_for_memory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="refused: .* it numbers an object 4294967040 of 2"):
        TorchFile(archive(tmp_path / "x.pt", b"\x80\x02}r\x00\xff\xff\xff."))
    names = b"\x80\x02}K\x01" + tensor_pickle("FloatStorage", 4, 0, (4,), (1,))[9:]
    with pytest.raises(ValueError, match="calls a tensor 1, wanted names"):
        TorchFile(archive(tmp_path / "y.pt", names, **{"0": bytes(16)}))


def test_damaged_members_of_an_archive_are_named(tmp_path):
    whole = pathlib.Path(archive(tmp_path / "x.pt", tensor_pickle("FloatStorage", 4, 0, (4,), (1,)),
                                 **{"0": np.arange(4, dtype=np.float32).tobytes()})).read_bytes()
    outcomes = set()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / "y.pt").write_bytes(damaged)
        try:
            file = TorchFile(str(tmp_path / "y.pt"))
            arrays = {name: file[name] for name in file}
            outcomes.add("read")
            assert all(a.nbytes <= 16 for a in arrays.values())
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}  # not every byte of a zip file matters


def test_an_unknown_layout_says_what_was_looked_for(tmp_path):
    save_file({"backbone.w": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="layout nobody here knows.*backbone.w"):
        weights.load_weights(str(tmp_path / "x.safetensors"), None, {})


def test_export_as_a_plain_clip_leaves_the_mask_parts_out():
    source = weights.read(TUNED)
    model = model_of(source)
    params, _ = weights.load_weights(TUNED, model, shapes_of(model))
    named = weights.export(params, model, "eva_clip")
    assert not any("mask" in k or "psm" in k for k in named)
    np.testing.assert_array_equal(named["visual.norm.weight"],
                                  source["visual_encoder.proxy.norm.weight"])
    with pytest.raises(ValueError, match="no place for .*similarity/corr_in/kernel"):
        rules.export(params, weights.rules_for("eva_clip", model))
