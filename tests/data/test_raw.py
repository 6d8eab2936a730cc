"""Archives: nested, damaged, of many members; folders with links and copies."""

import io
import os
import tarfile
import zipfile

import pytest

from maskclippp_jax.data.prepare import raw

CONTENT = {f"a/{i:03d}.txt": f"file {i}".encode() * (i + 1) for i in range(40)}


def zip_of(files: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


PACKED = {
    "x.zip": zip_of(CONTENT), "x.tar": tar_of(CONTENT, "w"), "x.tar.gz": tar_of(CONTENT, "w:gz"),
    "x.tgz": tar_of(CONTENT, "w:gz"),
    "stored.zip": zip_of({"in/x.zip": zip_of(CONTENT)}, zipfile.ZIP_STORED),
    "deflated.zip": zip_of({"in/x.zip": zip_of(CONTENT)}),
    "twice.zip": zip_of({"x.tar.gz": tar_of({"x.zip": zip_of(CONTENT)}, "w:gz")}),
    "tarred.tar": tar_of({"x.zip": zip_of(CONTENT)}, "w"),
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", PACKED)
def test_files_are_read_from_any_archive_in_any_order(tmp_path, monkeypatch, name, in_memory):
    monkeypatch.setattr(raw, "_IN_MEMORY", 2 << 30 if in_memory else 10)
    (tmp_path / name).write_bytes(PACKED[name])
    files = raw.Files(str(tmp_path), ["x.*", name]).find(r"a/(\d+)\.txt")
    assert sorted(files) == [f"{i:03d}" for i in range(40)]
    raw._archive.cache_clear()  # as in another process
    for key in (*sorted(files, reverse=True), *files):
        assert files[key].read() == CONTENT[f"a/{key}.txt"]


def test_members_beyond_an_overflowed_counter_are_found(tmp_path):
    """The number of members has 16 bits; the inner training zip of COCO panoptic has more."""
    data = bytearray(zip_of(CONTENT))
    assert data[-12:-10] == (40).to_bytes(2, "little")
    data[-14:-10] = (7).to_bytes(2, "little") * 2
    (tmp_path / "x.zip").write_bytes(data)
    assert len(raw.Files(str(tmp_path), ["x.zip"]).find(r"a/(\d+)\.txt")) == 40


def test_only_wanted_archives_are_opened_and_junk_is_left_out(tmp_path):
    (tmp_path / "other.zip").write_bytes(b"damaged, but nobody asks for it")
    (tmp_path / "x.zip").write_bytes(zip_of(
        CONTENT | {"a/._000.txt": b"", "__MACOSX/a/000.txt": b"", "__MACOSX/a/._1.txt": b""}))
    for folder in ("a", "__MACOSX"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "900.txt").write_text("plain")
        (tmp_path / folder / "._901.txt").write_text("junk")
    files = raw.Files(str(tmp_path), ["x.zip"]).find(r"a/(\d+)\.txt")
    assert sorted(files) == [*(f"{i:03d}" for i in range(40)), "900"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "stored.zip", "twice.zip"])
def test_a_truncated_archive_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name][:len(PACKED[name]) * 2 // 3])
    with pytest.raises(ValueError, match=f"{name} is no archive or was cut short.*download"):
        raw.Files(str(tmp_path), ["x.*", name])


def test_a_damaged_member_is_named(tmp_path):
    data = bytearray(zip_of({"a.txt": bytes(range(256))}, zipfile.ZIP_STORED))
    data[60] ^= 255
    (tmp_path / "x.zip").write_bytes(data)
    file = raw.Files(str(tmp_path), ["x.zip"]).get("a.txt")
    with pytest.raises(ValueError, match=r"a.txt in .*x.zip cannot be read .*download it again"):
        file.read()


def test_an_encrypted_archive_asks_to_be_unpacked(tmp_path):
    data = bytearray(zip_of({"a.txt": b"secret"}, zipfile.ZIP_STORED))
    central = data.index(b"PK\x01\x02")
    data[6] |= 1  # the flag that says so, of the member and in the directory
    data[central + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ValueError, match="unpack the archive with another program .*password"):
        raw.Files(str(tmp_path), ["x.zip"]).get("a.txt").read()


def test_an_archive_goes_before_its_unpacked_folder_but_copies_are_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of(CONTENT))
    for copy in ("a", "copy/a"):
        (tmp_path / copy).mkdir(parents=True)
        (tmp_path / copy / "000.txt").write_text(copy)
    files = raw.Files(str(tmp_path), ["x.zip"])
    assert files.find(r"a/(\d+)\.txt")["000"].archives
    with pytest.raises(ValueError, match="two files for 000.*a folder that holds one of them"):
        raw.Files(str(tmp_path)).find(r"a/(\d+)\.txt")


def test_links_are_followed_once_and_a_named_root_leaves_the_rest_out(tmp_path):
    for root in ("Wanted", "other"):
        (tmp_path / root / "images").mkdir(parents=True)
        (tmp_path / root / "images/1.png").write_text(root)
    os.symlink(tmp_path, tmp_path / "Wanted/circle")
    os.symlink(tmp_path / "nowhere", tmp_path / "Wanted/broken")
    files = raw.Files(str(tmp_path))
    assert files.find(r"images/(\d)\.png", below="Wanted")["1"].read() == b"Wanted"
    with pytest.raises(ValueError, match="two files for 1"):
        files.find(r"images/(\d)\.png", below="Absent")  # free root names: everything counts


def test_the_fingerprint_changes_with_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = raw.Files(str(tmp_path)).fingerprint
    assert raw.Files(str(tmp_path)).fingerprint == before
    (tmp_path / "a.txt").write_text("two, longer")
    assert raw.Files(str(tmp_path)).fingerprint != before
