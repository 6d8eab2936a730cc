"""Published files: on the hub, or downloaded by hand into the folder weights."""

import pathlib
import types

import pytest

from maskclippp_jax import configs
from maskclippp_jax.commands import weights as command
from maskclippp_jax.weights import catalogue, hub, published_generators, published_tuned


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with downloads; nothing is fetched."""
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "FOLDERS", (pathlib.Path("weights"), tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("weights/a_clip/model.safetensors", "weights/x.npz", "cache/y.pth",
                 "weights/maftp_l.pth", "cache/model_final_9fd0ae.pkl"):
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).write_bytes(b"1")
    return tmp_path


def test_a_copy_in_the_folder_comes_before_the_hub(place):
    want = "weights/a_clip/model.safetensors"
    for path in ("hf://owner/a_clip", "hf://owner/a_clip/model.safetensors"):
        assert pathlib.Path(hub.fetch(path)).samefile(want)
    assert pathlib.Path(hub.here("hf://owner/a_clip/model.safetensors")).samefile(want)
    assert hub.here("hf://owner/other") is None
    with pytest.raises(FileNotFoundError, match="is not in the cache of huggingface_hub"):
        hub.fetch("hf://owner/a_clip/other.bin")


def test_an_address_or_the_name_of_a_download_is_looked_for_here(place):
    assert hub.fetch("https://a/b/x.npz") == "weights/x.npz"
    assert hub.fetch("y.pth") == str(place / "cache/y.pth")
    pathlib.Path("y.pth").write_bytes(b"2")
    assert hub.fetch("y.pth") == "y.pth"  # a file that was named is that file
    assert hub.fetch("sub/z.pth") == "sub/z.pth"  # whoever reads it says that it is not there
    with pytest.raises(FileNotFoundError, match="z.pth is not here: there is no weights/z.pth .*; "
                       "download https://a/z.pth and put it there under this name"):
        hub.fetch("https://a/z.pth")


def test_the_table_shows_what_is_here_and_where_the_rest_comes_from(place, capsys):
    command.main([])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    for entry in (*published_tuned.MODELS, *published_generators.GENERATORS):
        assert entry.source in rows[entry.name]
    here = {name for name, line in rows.items() if " yes " in line}
    assert here == {"maftp-l", "mask2former-t", "quickstart"}  # this one is shipped
    assert "weights/maftp_l.pth" in rows["maftp-l"]
    assert "model_final_9fd0ae.pkl" in rows["mask2former-t"]
    assert "fetched when used" in rows["eomt-l-640"] and "RN50x16.pt" in rows["RN50x16"]
    command.main(["ViT-B-16:openai", "fcclip-l"])
    assert len(capsys.readouterr().out.splitlines()) == 4  # two files have the first one
    with pytest.raises(ValueError, match="nothing published is called fcclip-xl; did you mean fcc"):
        command.main(["fcclip-xl"])


@pytest.mark.parametrize("error, status, says", [
    ("GatedRepoError", 401, "is there only for those who accepted its terms; accept them"),
    ("RepositoryNotFoundError", 401, "no public repository meta/pe; .* private one wants `hf auth"),
    ("HfHubHTTPError", 401, "the hub refuses hf://meta/pe/x.pt to you; log in with `hf"),
    ("HfHubHTTPError", 500, "cannot be fetched")])
def test_weights_that_want_a_token_say_so(place, monkeypatch, error, status, says):
    import huggingface_hub
    from huggingface_hub import errors
    answer = types.SimpleNamespace(status_code=status, headers={}, request=None)

    def download(*arguments, **keywords):
        raise getattr(errors, error)("no", response=answer)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=says):
        hub.fetch("hf://meta/pe/x.pt")


def test_names_are_there_once_and_configurations_exist():
    rows = [row for row in catalogue.all_rows() if row.kind != "CLIP"]
    assert len({row.name for row in rows}) == len(rows) == 9 + 24
    assert all(row.on_hub or row.file or row.find() for row in catalogue.all_rows())
    for entry in published_tuned.MODELS:
        assert entry.config in configs.names()
