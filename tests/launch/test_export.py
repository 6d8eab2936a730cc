"""The exporters of launch/export: the hook with a stand-in model, the others with tiny real ones.

The real ones need torch, torchvision and transformers in the interpreter of the environment
variable TORCH_PYTHON (or in this one).
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from maskclippp_jax.data import transforms
from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.evaluation import augmented

ROOT = pathlib.Path(__file__).parents[2]
EXPORT = ROOT / "launch/export"
TORCH = os.environ.get("TORCH_PYTHON", sys.executable)


class Tensor:
    """What the hook asks of a tensor."""

    def __init__(self, array):
        self.array, self.shape = np.asarray(array), np.shape(array)

    detach = float = cpu = contiguous = lambda self: self

    def numpy(self):
        return self.array

    def new_tensor(self, array):
        return Tensor(array)

    def exp(self):
        return Tensor(np.exp(self.array))

    def __float__(self):
        return float(self.array)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, i):
        return Tensor(self.array[i])


class Module:
    """What the hook asks of a module."""

    def __init__(self, **parts):
        self.parts, self.hooks = parts, []
        vars(self).update(parts)

    def register_forward_hook(self, hook):
        self.hooks.append(hook)

    def named_modules(self, prefix=""):
        yield prefix, self
        for name, part in self.parts.items():
            if isinstance(part, Module):
                yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def state_dict(self):
        return {name: Tensor(np.zeros(2)) for name, _ in self.named_modules()}

    def output(self, value):
        for hook in self.hooks:
            hook(self, (), value)


def make_model(is_open):
    predictor = Module(class_embed=Module(), logit_scale=Tensor(np.log(250.0)))
    parts = dict(segmentor=Module(sem_seg_head=Module(predictor=predictor)))
    if is_open:
        parts["void_embedding"] = Module(weight=Tensor(np.full((1, 4), 0.5)))
    return Module(**parts), predictor


def run(predictor, number):
    """A forward pass: the class branch is called for every layer, the last one counts."""
    rng = np.random.default_rng(number)
    masks, logits = rng.normal(size=(1, 3, 8, 16)), rng.normal(size=(1, 3, 3))
    for _ in range(2):
        embeddings = rng.normal(size=(1, 3, 4))
        predictor.class_embed.output(Tensor(embeddings))
    predictor.output(dict(pred_masks=Tensor(masks), pred_logits=Tensor(logits)))
    return masks[0], logits[0], embeddings[0]


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPORT))
    import detectron2_hook
    return detectron2_hook


# Loaded at 20x30, resized to 32x48, padded to 32x64: a quarter of it are masks of 8x16.
INPUTS = dict(file_name="some/where/a%2Fb.jpg", height=40, width=60, image=Tensor(np.zeros((3, 20,
                                                                                           30))))
SIZES = dict(loader_min=20, loader_max=100, short_side=32)


@pytest.mark.parametrize("is_open", [True, False])
def test_the_hook_keeps_what_the_predictor_says(tmp_path, hook, is_open):
    model, predictor = make_model(is_open)
    recorder = hook.MaskRecorder(model, tmp_path / "b", name="stand-in", **SIZES,
                                 vocabulary=None if is_open else [["x"], ["y", "z"]])
    masks, logits, embeddings = run(predictor, 0)
    recorder.write(INPUTS)
    assert recorder.has(INPUTS)
    recorder.finish()
    bundle = Bundle(tmp_path / "b")
    found = bundle.read("a/b")
    np.testing.assert_allclose(found.masks.astype(np.float32), masks, atol=2e-3)
    assert (found.enlarged, found.kept) == ((32, 64), (32, 48))
    if is_open:
        assert bundle.kind == "embeddings" and bundle.classes["logit_scale"] == 100
        assert len(bundle.classes["templates"]) == 14
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        np.testing.assert_allclose(found.classes, embeddings, atol=1e-6)
    else:
        assert bundle.vocabulary.classes == (("x",), ("y", "z"))
        np.testing.assert_allclose(found.classes, logits, atol=1e-6)


def test_the_hook_writes_bundles_of_versions(tmp_path, hook, rng):
    """Pictures get to the model as `evaluate` makes its versions of them."""
    image = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    inputs = dict(INPUTS, image=Tensor(image.transpose(2, 0, 1)))
    model, predictor = make_model(True)
    versions = hook.pictures.versions(short_sides=(10, 25), flip=True)
    for version in versions:
        recorder = hook.MaskRecorder(model, tmp_path / version.name, name="stand-in", **SIZES,
                                     version=version)
        changed = recorder.version_of(inputs)
        np.testing.assert_array_equal(
            changed["image"].array.transpose(1, 2, 0),
            transforms.make_version(image, transforms.Version(*version)))
        run(predictor, 0)
        recorder.write(changed)
        recorder.finish()
    wanted = transforms.versions_of((10, 25), flip=True)
    assert versions == wanted
    bundles = augmented.open_bundles(str(tmp_path), wanted)
    assert [b.folder.name for b in bundles] == [
        "short_10", "short_10_flipped", "short_25", "short_25_flipped"]
    assert bundles[3].pictures["a/b"]["loaded"] == [25, 38]


def test_the_hook_refuses_what_would_give_wrong_masks(tmp_path, hook):
    model, predictor = make_model(True)
    recorder = hook.MaskRecorder(model, tmp_path / "b", name="stand-in", **SIZES)
    with pytest.raises(ValueError, match="has seen no picture"):
        recorder.write(INPUTS)
    run(predictor, 0)
    with pytest.raises(ValueError, match="is padded to .32, 32."):
        recorder.write(dict(INPUTS, image=Tensor(np.zeros((3, 20, 20)))))
    predictor.output(dict(pred_masks=Tensor(np.zeros((2, 3, 8, 16)))))
    with pytest.raises(ValueError, match="a batch of 2 pictures"):
        recorder.write(INPUTS)
    with pytest.raises(ValueError, match="give their names as `vocabulary`"):
        hook.MaskRecorder(make_model(False)[0], tmp_path / "c", name="x", **SIZES)
    with pytest.raises(ValueError, match="has 0 modules named"):
        hook.MaskRecorder(Module(), tmp_path / "c", name="x", **SIZES)


MAKE = '''
import json, sys, torch, transformers as t
kind, folder = sys.argv[1:]
torch.manual_seed(0)
labels = {0: "wall", 1: "building, edifice", 2: "sky-other-merged", 3: "tree-merged", 4: "person"}
swin = t.SwinConfig(image_size=64, embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 4, 8],
                    window_size=4, out_features=["stage1", "stage2", "stage3", "stage4"])
small = dict(backbone_config=swin, hidden_dim=32, encoder_feedforward_dim=64, encoder_layers=2,
             decoder_layers=3, num_attention_heads=4, dim_feedforward=64, num_queries=12,
             id2label=labels)
if kind == "Mask2Former":
    model = t.Mask2FormerForUniversalSegmentation(t.Mask2FormerConfig(
        feature_size=32, mask_feature_size=32, **small))
elif kind == "MaskFormer":
    detr = t.DetrConfig(d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
                        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
                        num_queries=12)
    model = t.MaskFormerForInstanceSegmentation(t.MaskFormerConfig(
        backbone_config=swin, decoder_config=detr, fpn_feature_size=32, mask_feature_size=32,
        id2label=labels))
elif kind == "OneFormer":
    model = t.OneFormerForUniversalSegmentation(t.OneFormerConfig(
        conv_dim=32, mask_dim=32, text_encoder_width=32, text_encoder_context_length=16,
        text_encoder_num_layers=1, text_encoder_vocab_size=64, task_seq_len=16, **small))
    letters = sorted(set("thetaskispanoptic"))
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
if kind == "Sam":
    model = t.SamModel(t.SamConfig(
        vision_config=t.SamVisionConfig(
            hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2,
            image_size=64, patch_size=8, mlp_dim=32, global_attn_indexes=[0], num_pos_feats=8,
            window_size=4),
        prompt_encoder_config=t.SamPromptEncoderConfig(
            hidden_size=16, image_size=64, patch_size=8, mask_input_channels=8),
        mask_decoder_config=t.SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2,
            iou_head_hidden_dim=16, iou_head_depth=2)))
    t.SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
else:
    own = kind == "Mask2Former"
    json.dump({"image_processor_type": kind + "ImageProcessor",
               "image_mean": [0.485, 0.456, 0.406] if own else [0.48, 0.45, 0.4],
               "image_std": [0.229, 0.224, 0.225] if own else [0.25, 0.25, 0.25]},
              open(folder + "/preprocessor_config.json", "w"))
model.eval().save_pretrained(folder)
if kind == "OneFormer":
    json.dump({w: i for i, w in enumerate(words)}, open(folder + "/vocab.json", "w"))
    open(folder + "/merges.txt", "w").write("#version: 0.2\\n")
    json.dump({"tokenizer_class": "CLIPTokenizer"}, open(folder + "/tokenizer_config.json", "w"))
'''
CONFIG = '''
from maskclippp_jax.configs import quickstart
def get_config():
    config = quickstart.get_config().unlock()
    config.eval.dataset = "ade20k_150,ade20k_150_panoptic,ade20k_150_instance"
    config.eval.seen_vocabulary = "coco_panoptic_133"
    config.eval.loader_min, config.eval.loader_max = 48, 200
    config.eval.short_side, config.eval.mask_short_side = 64, 64
    return config.lock()
'''


def has_torch():
    return subprocess.run([TORCH, "-c", "import torch, torchvision, transformers"],
                          capture_output=True).returncode == 0


def call(*line, cwd):
    environment = dict(os.environ, JAX_PLATFORMS="cpu", COLUMNS="120", PYTHONPATH=str(ROOT),
                       HF_HUB_OFFLINE="1")
    done = subprocess.run(list(map(str, line)), cwd=cwd, env=environment, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """ADE20K's fixtures in all three forms, and their pictures as files."""
    folder = tmp_path_factory.mktemp("ade")
    ours = [sys.executable, "-m"]
    raw = ROOT / "tests/fixtures/ade20k_2016/archives"
    call(*ours, "maskclippp_jax", "prepare", "ade20k_150", "ade20k_150_panoptic",
         "ade20k_150_instance", f"--raw_dir={raw}", "--data_dir=data", cwd=folder)
    call(*ours, "maskclippp_jax", "masks", "pictures", "--dataset=ade20k_150", "--output=pictures",
         cwd=folder)
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Mask2Former", "MaskFormer", "OneFormer", "Sam"])
def test_masks_of_a_real_model_are_evaluated(place, kind):
    """From raw archives to a table of label maps, segments and instances."""
    if not has_torch():
        pytest.skip(f"{TORCH} has no torch, torchvision and transformers; name one in TORCH_PYTHON")
    (place / kind).mkdir()
    call(TORCH, "-c", MAKE, kind, kind, cwd=place)
    line = [f"--model={kind}", "--images=pictures/*", f"--bundle=b_{kind}", "--device=cpu"]
    if kind == "Sam":
        call(TORCH, EXPORT / "sam.py", *line, "--points_per_side=4", "--pred_iou_thresh=-10",
             "--stability_score_thresh=0", cwd=place)
    else:
        call(TORCH, EXPORT / "hugging_face.py", *line, "--loader_min=48", "--loader_max=200",
             "--short_side=64", cwd=place)
        assert Bundle(place / f"b_{kind}").vocabulary.classes[1:4] == (
            ("building", "edifice"), ("sky",), ("tree",))
    if kind == "Mask2Former":  # which we have as well
        call(sys.executable, "-m", "maskclippp_jax", "masks", "export", "--config=tiny.py",
             "--config.data_dir=data", f"--generator={kind}", "--output=b_ours", cwd=place)
        ours, theirs = Bundle(place / "b_ours"), Bundle(place / f"b_{kind}")
        assert ours.vocabulary.classes == theirs.vocabulary.classes
        for image_id in theirs.pictures:
            one, other = ours.read(image_id), theirs.read(image_id)
            np.testing.assert_allclose(one.masks, other.masks, atol=1e-2)  # float16
            np.testing.assert_allclose(one.classes, other.classes, atol=1e-3)
    said = call(sys.executable, "-m", "maskclippp_jax", "evaluate", "--config=tiny.py",
                "--config.data_dir=data", f"--config.eval.ensemble={kind != 'Sam'}",
                "--config.eval.alpha=0.5", "--checkpoint=untuned", f"--bundle=b_{kind}",
                f"--workdir=w_{kind}", "--samples=0", cwd=place)
    model, = json.loads((place / f"w_{kind}/results.json").read_text())["models"]
    assert model["semantic"]["classes_in_ground_truth"] == 10
    assert model["panoptic"]["all"]["categories"] > 0 and model["instances"]["pictures"] == 2
    assert "PQ of things" in said and "AP50" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Mask2Former", "Sam"])
def test_masks_of_versions_are_evaluated_together(place, kind):
    if not has_torch():
        pytest.skip(f"{TORCH} has no torch, torchvision and transformers; name one in TORCH_PYTHON")
    model = place / f"{kind}_of_versions"
    model.mkdir()
    call(TORCH, "-c", MAKE, kind, model, cwd=place)
    script = [TORCH, EXPORT / "sam.py", "--points_per_side=4", "--pred_iou_thresh=-10",
              "--stability_score_thresh=0"]
    if kind == "Mask2Former":
        script = [TORCH, EXPORT / "hugging_face.py", "--loader_min=48", "--loader_max=200",
                  "--short_side=64"]
    script += [f"--model={model}", "--images=pictures/*", f"--bundle=v_{kind}", "--device=cpu",
               "--flip"]
    call(*script, "--short_sides=48", cwd=place)
    said = call(*script, "--short_sides=48,64", cwd=place)
    assert f"v_{kind}/short_48 is finished" in said and "2/2" in said
    assert {f.name for f in (place / f"v_{kind}").iterdir()} == {
        "short_48", "short_48_flipped", "short_64", "short_64_flipped"}
    one, other = (Bundle(place / f"v_{kind}/{name}") for name in ("short_48", "short_64_flipped"))
    assert (one.version, other.version) == ((48, False), (64, True))
    said = call(sys.executable, "-m", "maskclippp_jax", "evaluate", "--config=tiny.py",
                "--config.data_dir=data", "--config.eval.dataset=ade20k_150",
                f"--config.eval.ensemble={kind != 'Sam'}", "--config.eval.alpha=0.5",
                "--config.eval.short_sides=48,64", "--config.eval.flip=True",
                "--checkpoint=untuned", f"--bundle=v_{kind}", f"--workdir=w_v_{kind}",
                "--samples=0", cwd=place)
    assert "versions: mean over 4: short side 48, short side 48 mirrored," in said
    found, = json.loads((place / f"w_v_{kind}/results.json").read_text())["models"]
    assert found["semantic"]["classes_in_ground_truth"] == 10
