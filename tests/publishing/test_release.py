"""A run on the hub and back, through a stand-in that speaks its HTTP interface."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml

import maskclippp_jax as mc
from maskclippp_jax import config as configuration, configs, params as parameters
from maskclippp_jax.drawing import report
from maskclippp_jax.naming import loading
from maskclippp_jax.publishing import card, measured, release
from maskclippp_jax.runtime import storage
from maskclippp_jax.weights import hub as addresses, released
from tests import hub_stand_in, stored

STEP = 2  # of the stored run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a run, `run`, and results of it, `results`."""
    with zipfile.ZipFile(stored.FILE) as archive:
        archive.extractall(tmp_path, [f for f in archive.namelist() if f.startswith("run/")])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(addresses, "FOLDERS", (pathlib.Path("weights"),))
    write_results(tmp_path / "results")
    return tmp_path


def write_results(folder, checkpoint=f"run after step {STEP}"):
    folder.mkdir()
    model = lambda value: dict(
        name="x", mask_accuracy=dict(mMaskAcc=value, seen=value, unseen=None, micro=value, masks=9,
                                     classes=3, intervals=dict(mMaskAcc=[value - 1, value + 1])),
        semantic=dict(mIoU=value / 2))
    report.write_json(folder / "results.json", dict(
        protocol=dict(dataset="scenes", split="validation", loader="None/2048",
                      masks=f"of {folder}/secret place/g.safetensors, made for each picture",
                      generator="checkpoint /home/me/x.pth, name G"),
        models=[dict(model(40.0), checkpoint="untuned random"),
                dict(model(99.0), checkpoint="runs/other after step 2"),
                dict(model(62.5), checkpoint=checkpoint)]))
    (folder / "comparison.png").write_bytes(b"a picture")


@pytest.fixture
def hub(place, monkeypatch):
    """A hub that takes the place of the real one, with a token for it."""
    from huggingface_hub import constants
    with hub_stand_in.serve() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            found.address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub_stand_in.TOKEN)
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with all that would be published of the run; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    with zipfile.ZipFile(stored.FILE) as archive:
        archive.extractall(folder, [f for f in archive.namelist() if f.startswith("run/")])
    publish(path=str(folder / "run"), dry_run=True, output=str(folder / "copy"))
    return folder / "copy"


@pytest.fixture
def change(made, tmp_path):
    """Copies it with another configuration."""
    def change(edit):
        shutil.copytree(made, tmp_path / "copy")
        file = tmp_path / "copy" / released.CONFIG
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))
        return str(tmp_path / "copy")

    return change


def publish(repo="alice/stripes", path="run", **options):
    release.publish(path, release.Options(repo, **options))


def test_what_is_published_comes_back_to_the_byte(place, hub):
    publish(results=["results"])
    files = hub.files("alice/stripes")
    assert set(files) == {"README.md", "maskclippp.safetensors", "maskclippp_config.json",
                          "model.safetensors", "vocabulary.txt", "pictures/comparison-0.png"}
    assert len(hub.repositories["alice/stripes"]["commits"]) == 1
    assert files["vocabulary.txt"] == (place / "run/vocabulary.txt").read_bytes()
    run, back = mc.load("run"), mc.load("hf://alice/stripes")
    leaves = lambda path, config: parameters.flatten(loading.load_checkpoint(path, config)[1])
    for name in ("hf://alice/stripes", "hf://alice/stripes/maskclippp.safetensors"):
        fetched = addresses.fetch(name if name.endswith("s") and name.count("/") > 3
                                  else f"{name}/model.safetensors")
        assert pathlib.Path(fetched).read_bytes() == files[pathlib.Path(fetched).name]
        got, wanted = leaves(name, back.config), leaves("run", run.config)
        assert set(got) == set(wanted)
        for path, array in wanted.items():
            np.testing.assert_array_equal(got[path], array, err_msg=f"{name}: {path}")
    assert back.config.model == run.config.model
    assert back.config.templates == run.config.templates
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (32, 32, 3), np.uint8), np.arange(1024).reshape(32, 32) // 256
    scores = [m.name(*picture, ["red", "green", "blue"]).scores for m in (run, back)]
    np.testing.assert_array_equal(*scores)


def test_a_copy_of_the_repository_is_read_like_it(place, made):
    assert mc.load(made).config.model == mc.load("run").config.model
    shutil.copytree(made, "weights/stripes")
    assert mc.load("hf://alice/stripes").title == "hf://alice/stripes"


def test_publishing_again_replaces_all_in_one_commit_and_leaves_other_files(place, hub):
    publish(results=["results"])
    hub.repositories["alice/stripes"]["commits"][0] |= {"NOTES.md": b"mine",
                                                        "sentencepiece.model": b"old"}
    publish()
    commits = hub.repositories["alice/stripes"]["commits"]
    assert len(commits) == 2 and set(commits[1]) == {
        "README.md", "maskclippp.safetensors", "maskclippp_config.json", "model.safetensors",
        "vocabulary.txt", "NOTES.md"}
    assert b"nothing is known of its quality" in commits[1]["README.md"]


def test_the_card_tells_numbers_with_protocol_and_ranges_as_text_and_as_data(place, hub):
    publish(results=["results"])
    text = hub.files("alice/stripes")["README.md"].decode()
    metadata, card_text = text.removeprefix("---\n").split("\n---\n", 1)
    entry = yaml.safe_load(metadata)["model-index"][0]
    assert entry["name"] == "stripes"
    metrics = {m["name"]: m for m in entry["results"][0]["metrics"]}
    assert metrics["mask accuracy"]["value"] == 62.5 and metrics["mIoU"]["value"] == 31.25
    assert metrics["mask accuracy"]["args"] == dict(bootstrap_95=[61.5, 63.5])
    assert "mask accuracy, unseen classes" not in metrics  # it is not defined
    assert entry["results"][0]["dataset"]["args"]["loader"] == "None/2048"
    assert "| 40.0 (39.0 ... 41.0) | 62.5 (61.5 ... 63.5) |" in card_text
    assert "99.0" not in text  # another run's
    assert "- loader: None/2048" in card_text
    assert "mc.load(\"hf://alice/stripes\")" in card_text
    assert '["red thing", "green, green stuff", "blue"]' in card_text
    assert "1,323 of 12,388 parameters" in card_text
    assert "2 of 2, 2 pictures each" in card_text
    assert "](pictures/comparison-0.png)" in card_text


def test_no_folder_of_this_machine_goes_along(place, hub):
    content = json.loads((place / "run/config.json").read_text())
    content |= dict(
        data_dir=f"{place}/my data", sentencepiece=f"{place}/secret/pieces.model",
        weights=f"{place}/secret/base.pt", api_key="mine alone")
    content["train"]["dataset"] = content["eval"]["dataset"] = "mine"
    content["eval"] |= dict(seen_vocabulary=f"{place}/secret/names.txt",
                            generator_weights="gs://bucket/secret/clip.pt")
    (place / "run/config.json").write_text(json.dumps(content))
    (place / "secret").mkdir()
    (place / "secret/names.txt").write_text("red\n")
    (place / "secret/pieces.model").write_bytes(b"pieces")
    (place / "run/data.json").write_text('{"sets": {}, "changes": ["the records of mine"]}')
    publish(results=["results"])
    files = hub.files("alice/stripes")
    for name, data in files.items():
        for word in (b"secret", str(place).encode(), b"/home/me", b"my data", b"api_key"):
            assert word not in data, (name, word)
    stored_config = json.loads(files["maskclippp_config.json"])
    assert stored_config["weights"] == "base.pt"
    assert stored_config["eval"]["generator_weights"] == "clip.pt"
    assert files["seen_vocabulary.txt"] == b"red\n"
    back = mc.load("hf://alice/stripes").config
    assert pathlib.Path(back.eval.seen_vocabulary).read_text() == "red\n"
    assert pathlib.Path(back.sentencepiece).read_bytes() == b"pieces"
    assert b"| its data changed on the way | the records of mine |" in files["README.md"]
    assert b"of g.safetensors, made for each picture" in files["README.md"]
    assert b"checkpoint x.pth, name G" in files["README.md"]


def test_a_model_that_the_reference_has_no_names_for_goes_under_ours_alone(place, monkeypatch):
    def no_names(layout, model):
        raise ValueError("no names")

    monkeypatch.setattr(release.weights, "rules_for", no_names)
    publish(dry_run=True, output="copy")
    assert not (place / "copy/maskclippp.safetensors").exists()
    assert "maskclippp.safetensors" not in (place / "copy/README.md").read_text()
    monkeypatch.undo()
    assert mc.load(place / "copy").title.endswith("copy")


@pytest.mark.parametrize("name, says", [
    ("hf_" + "b" * 30, "would tell what looks like a token"),
    ("{place}/run", "would tell of the folder")])
def test_a_token_or_a_folder_among_the_names_is_refused(place, hub, name, says):
    (place / "run/vocabulary.txt").write_text(name.format(place=place) + "\n")
    with pytest.raises(ValueError, match=says):
        publish()
    assert not hub.repositories and not hub.asked


def test_names_that_cannot_be_read_are_told_with_their_file(place, hub):
    (place / "run/vocabulary.txt").write_text("red\tthi")
    with pytest.raises(ValueError, match="run/vocabulary.txt, line 1: got"):
        publish()
    assert not hub.repositories


@pytest.mark.parametrize("fault, sent", [("store", 1), ("commit", 1), ("whoami", 0)])
def test_a_fault_on_the_way_publishes_nothing_and_the_same_line_then_does(place, hub, fault, sent):
    hub.fault = fault
    with pytest.raises((OSError, ValueError), match="the hub .*noth?ing was (published|sent)"):
        publish()
    assert len(hub.repositories) == sent and not any(
        r["commits"] for r in hub.repositories.values())
    hub.fault = None
    publish()
    assert "model.safetensors" in hub.files("alice/stripes")


@pytest.mark.parametrize("changes, says", [
    (dict(repo="stripes"), "wanted owner/name"), (dict(repo="a/b/c"), "wanted owner/name"),
    (dict(repo="a/.."), "wanted owner/name"), (dict(path="results"), "no run in"),
    (dict(path="nothing"), "wanted the folder of a training run"),
    (dict(path="run/config.json"), "wanted the folder of a training run"),
    (dict(path="run/checkpoints/7"), "wanted the folder of a training run"),
    (dict(results=["run"]), "has no results.json"),
    (dict(results=["other"]), "has no results of run after step 2, but of untuned random; runs/ot"),
    (dict(output="x"), "which is for --dry_run"),
    (dict(output="results", dry_run=True), "is not empty"),
    (dict(private=True, repo="alice/public"), "is on the hub and public"),
    (dict(repo="alice/others"), "holds something else"),
    (dict(repo="bob/stripes"), "may the token write to bob")])
def test_what_cannot_be_published_is_refused_and_nothing_sent(place, hub, changes, says):
    write_results(place / "other", checkpoint="run after step 1")
    hub.repositories |= {
        "alice/public": dict(private=False, commits=[{released.CONFIG: b"{}"}]),
        "alice/others": dict(private=False, commits=[{"pytorch_model.bin": b""}])}
    with pytest.raises((ValueError, OSError), match=says):
        publish(**changes)
    assert not any("PUT" in line or "/commit/" in line for line in hub.asked)
    assert not (place / "x").exists()


def test_without_token_or_network_there_is_a_sentence(place, hub, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")
    with pytest.raises(ValueError, match="the hub cannot be reached .*nothing was sent"):
        publish()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        publish()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place / "token"))
    with pytest.raises(ValueError, match="there is no token of the hub; log in"):
        publish()
    publish(dry_run=True)  # which needs neither


def test_the_command_publishes_and_says_what_it_lacks(place, hub):
    environment = dict(os.environ, HF_ENDPOINT=hub.address, HF_HUB_DISABLE_XET="1",
                       PYTHONPATH=str(pathlib.Path(__file__).parents[2]), HF_HOME=str(place / "h"))
    run = lambda *flags: subprocess.run(
        [sys.executable, "-m", "maskclippp_jax", "publish", "--checkpoint=run",
         "--repo=alice/stripes", *flags], env=environment, capture_output=True, text=True)
    done = run("--private", "--results=results", "--nopictures", "--licence=mit")
    assert done.returncode == 0 and "published: http" in done.stderr, done.stderr
    assert hub.repositories["alice/stripes"]["private"]
    files = hub.files("alice/stripes")
    assert b"\nlicense: mit\n" in files["README.md"] and not any("pictures" in f for f in files)
    del environment["HF_TOKEN"]
    done = run()
    assert done.returncode == 2 and "there is no token of the hub" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_published_configuration_runs_nothing_and_points_at_no_file_here(change):
    def edit(content):
        content |= dict(data_dir="/etc", weights="gs://bucket/x.pt", get_config="import os")
        content["eval"]["seen_vocabulary"] = "../../passwd.txt"

    config = mc.load(change(edit)).config
    assert (config.data_dir, config.weights) == ("data", "x.pt")
    assert config.eval.seen_vocabulary == "passwd.txt" and "get_config" not in config


@pytest.mark.parametrize("changes, says", [
    (dict(model=None), "model is None"), (dict(model="x"), "model is 'x'"),
    (dict(templates="x"), "templates is 'x'"), (dict(seed="now"), "seed is 'now'"),
    (dict(model={"type": "TextConfig"}), "this version does not know"),
    (dict(model={"type": "os.system", "x": 1}), "this version does not know"),
    (dict(model={"type": "MaskCLIPppConfig", "depth": 10**9}), "depth is 1000000000, wanted at m"),
    (dict(eval=[]), r"eval is \[\]"), (dict(train={"steps": "many"}), "train.steps is 'many'")])
def test_a_damaged_configuration_is_refused_in_a_sentence(change, changes, says):
    with pytest.raises(ValueError, match=says):
        mc.load(change(lambda content: content.update(changes)))


def test_keys_that_came_later_are_filled_in(change):
    def edit(content):
        del content["eval"]["flip"], content["sentencepiece"]

    config = mc.load(change(edit)).config
    assert config.eval.flip is False and config.sentencepiece == ""


def test_a_repository_of_others_still_wants_its_configuration(place, hub):
    hub.repositories["bob/clip"] = dict(private=False, commits=[{"model.safetensors": b"x"}])
    with pytest.raises(ValueError, match="only the folder of a run says which model it is of"):
        mc.load("hf://bob/clip")
    with pytest.raises(FileNotFoundError, match="has no public repository bob/none"):
        mc.load("hf://bob/none")


def test_every_shipped_configuration_is_published_whole():
    """A key of its own would be left out."""
    names = [n for n in configs.names() if not n.startswith("eval/")]
    assert len(names) > 10
    for name in names:
        stored_config = configuration.to_json(configs.read(name))
        public = released.public(stored_config)
        assert public == released.public(public)
        hidden = ("data_dir", "weights", "sentencepiece")
        for key, value in stored_config.items():
            assert key in hidden or key == "eval" or public[key] == value, (name, key)
        assert set(public["eval"]) == set(stored_config["eval"])


@pytest.mark.parametrize("weights, name, licence, repository", [
    ("random", "random weights", None, None),
    ("/x/quickstart_clip.safetensors", "the small CLIP of the quick", "Apache-2.0", None),
    ("hf://QuanSun/EVA-CLIP/EVA02_CLIP_B_psz16_s8B.pt", "EVA02-CLIP-B-16 (", "MIT",
     "QuanSun/EVA-CLIP"),
    ("EVA02_CLIP_B_psz16_s8B.pt", "EVA02-CLIP-B-16 (", "MIT", "QuanSun/EVA-CLIP"),
    ("hf://bob/own/model.safetensors", "hf://bob/own/model", None, "bob/own"),
    ("model.safetensors", "model.safetensors", None, None)])
def test_what_a_model_was_tuned_from_is_known_by_its_file(weights, name, licence, repository):
    base = card.base_of(weights)
    assert base.name.startswith(name) and (base.licence, base.repository) == (licence, repository)


@pytest.mark.parametrize("words, wanted", [
    ("None/None", "None/None"), ("800/2560", "800/2560"), ("None/2048", "None/2048"),
    ("of /a/b c/x.pt, made for each picture", "of x.pt, made for each picture"),
    ("ground truth", "ground truth"),
    ("name G, weights ../a/b.pt, x 1", "name G, weights b.pt, x 1"), ("/a/b c/d", "d"),
    ("C:\\me\\x.pt", "x.pt"), ("of hf://a/b/c.pt, made", "of hf://a/b/c.pt, made"),
    ("gs://bucket/x", "x"), ("data/bundles/maftp_l", "maftp_l"), ("~/x", "x")])
def test_names_of_files_lose_their_folders_in_words(words, wanted):
    assert measured.without_folders(words) == wanted


def test_results_are_those_of_the_same_folder_and_step(place):
    run = storage.path("run")
    find = lambda step, named=(), digest="": measured.find(
        measured.Checkpoint(run, step, "random", digest), named)
    assert not find(STEP)  # nothing in the run's folder
    write_results(place / "run/evaluated", checkpoint=f"{place}/run/checkpoints/2 after step 2")
    assert [m.model["mask_accuracy"]["mMaskAcc"] for m in find(STEP)] == [62.5]
    assert find(STEP)[0].untuned["mask_accuracy"]["mMaskAcc"] == 40.0
    assert len(find(STEP, ["results", "run/evaluated"])) == 2
    assert not find(1)
    shutil.copytree("run", "elsewhere/run")
    write_results(place / "copied", checkpoint="elsewhere/run after step 2")
    with pytest.raises(ValueError, match="has no results of run after step 2"):
        find(STEP, ["copied"])
    file = place / "run/evaluated/results.json"
    content = json.loads(file.read_text())
    content["models"][2]["weights"] = "0123"  # of the run that had this name before
    file.write_text(json.dumps(content))
    assert find(STEP, digest="0123") and not find(STEP, digest="4567")
    with pytest.raises(ValueError, match="with other weights: it was tuned anew; evaluate it"):
        find(STEP, ["run/evaluated"], "4567")
