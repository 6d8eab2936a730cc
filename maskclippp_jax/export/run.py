"""Names the masks of a picture with this folder alone:

    python run.py photo.jpg masks.png     the masks of a label map
    python run.py photo.jpg               those of the generator, if the folder has one

It needs numpy, Pillow and onnxruntime; if the format in manifest.json is stablehlo, jax,
flatbuffers and safetensors in place of the last.
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).resolve().parent
MANIFEST = json.loads((HERE / "manifest.json").read_text("utf-8"))


def program(name):
    """A program of the folder as a function of its inputs by name."""
    entry = MANIFEST["programs"][name]
    if MANIFEST["format"] == "onnx":
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        session = onnxruntime.InferenceSession(
            HERE / entry["file"], options, providers=onnxruntime.get_available_providers())
        run = lambda **arrays: session.run(None, arrays)
    else:
        import jax
        from safetensors.numpy import load_file
        call = jax.export.deserialize(bytearray((HERE / entry["file"]).read_bytes())).call
        leaves = load_file(HERE / entry["parameters"])
        run = lambda **arrays: jax.device_get(call(leaves, *(arrays[k] for k in entry["inputs"])))
    return lambda **arrays: dict(zip(entry["outputs"], run(**arrays)))


def load(picture):
    """The picture [1, H, W, 3] as the encoder wants it."""
    rule, size = MANIFEST["picture"], np.array(picture.size)
    if rule["shorter_side"]:
        scale = rule["shorter_side"] / min(size)
        scale = min(scale, rule["longest_side"] / max(size * scale) * scale)
        picture = picture.resize(np.maximum(size * scale + 0.5, 1).astype(int).tolist(),
                                 Image.Resampling.BILINEAR)
    return np.asarray(picture)[None]


def of_label_map(labels, loaded):
    """Masks [1, N, H, W] of a label map, the size they pass through, and what they are called."""
    rule = MANIFEST["label_map"]
    numbers = [n for n in np.unique(labels).tolist() if n not in rule["nothing"]]
    size = np.array(labels.shape)
    if rule["shorter_side"]:
        size = loaded * rule["shorter_side"] // loaded.min()
    masks = (labels == np.array(numbers)[:, None, None]).astype(np.float32)
    return dict(masks=masks[None], mask_sizes=np.array([size, size], np.int32)), numbers


def of_generator(picture):
    """Masks of the generator, and its opinion of them, of those that are any object."""
    rule = MANIFEST["generator"]
    side, cell = rule["side"], rule["stride"]
    scale = min(side / n for n in picture.size)
    width, height = (max(1, round(n * scale)) for n in picture.size)
    canvas = np.zeros((1, side, side, 3), np.uint8)  # black below and at the right
    canvas[0, :height, :width] = picture.resize((width, height), Image.Resampling.BILINEAR)
    found = program("generator")(image=canvas)
    logits = found["generator_classes"][0]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    kept = 1 - odds[:, -1] / odds.sum(-1) > rule["objectness"]
    inside = found["masks"][0, :, :-(-height // cell), :-(-width // cell)]
    kept &= (inside > 0.5).any((1, 2))
    sizes = np.array([[side, side], [height, width]], np.int32)
    return (dict(masks=found["masks"][:, kept], mask_sizes=sizes), logits[None, kept])


def name(photo, masks=None):
    """Scores [N, C] of the masks of a picture, and what the masks are called."""
    picture = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    image, opinion, kind = load(picture), {}, "classifier"
    if masks is None:
        given, logits = of_generator(picture)
        ids = list(range(1, logits.shape[1] + 1))
        opinion, kind = dict(generator_classes=logits), "classifier_of_generated"
    else:
        given, ids = of_label_map(np.asarray(Image.open(masks)), np.array(image.shape[1:3]))
    if not ids:
        return np.zeros((0, len(MANIFEST["classes"]))), ids
    # The encoder in which the picture is largest; of equals the smallest.
    height, width = image.shape[1:3]
    short_side = lambda e: min(MANIFEST["short_side"], min(e["height"] / height,
                               e["width"] / width) * min(height, width))
    encoder = max(MANIFEST["encoders"],
                  key=lambda e: (short_side(e), -e["height"] * e["width"]))
    if short_side(encoder) < MANIFEST["short_side"] - 1:
        print(f"{photo} is longer than the encoders: seen with a shorter side of "
              f"{short_side(encoder):.0f} pixels, not {MANIFEST['short_side']}", file=sys.stderr)
    features = program(encoder["program"])(image=image, **given)
    return program(kind)(**features, **opinion)["scores"][0], ids


if __name__ == "__main__":
    scores, ids = name(*sys.argv[1:3])
    for row, number in zip(scores, ids):
        best = np.argsort(-row)[:3]
        print(f"mask {number}: " + ", ".join(
            f"{MANIFEST['classes'][c]['names'][0]} {row[c]:.3f}" for c in best))
