"""Names the masks of a picture with this folder alone:

    python run.py photo.jpg masks.png     the masks of a label map
    python run.py photo.jpg               those of the generator, if the folder has one

A label map is a PNG or TIFF of one whole number a pixel, of the picture's size. Each number is a
mask, but 255 and 65535 mean nothing. The three likeliest names of every mask are printed.

It needs numpy, Pillow and onnxruntime; if the format in manifest.json is stablehlo, jax,
flatbuffers and safetensors in place of the last.
"""

import argparse
import contextlib
import json
import pathlib
import sys

import numpy as np
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).resolve().parent
MANIFEST = json.loads((HERE / "manifest.json").read_text("utf-8"))


class Refused(ValueError):
    """A picture or masks that cannot be named; says what was got and what is wanted."""


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

    def filled(**arrays):
        for key, x in arrays.items():  # a fixed number of pictures or masks: the last is repeated
            missing = [side - n if isinstance(side, int) else 0
                       for side, n in zip(entry["inputs"][key]["shape"], x.shape)]
            arrays[key] = np.pad(x, [(0, n) for n in missing], "edge")
        return dict(zip(entry["outputs"], run(**arrays)))

    return filled


@contextlib.contextmanager
def opened(path, wanted):
    """A file as an image of Pillow; what fails ends in a sentence."""
    try:
        with Image.open(path) as image:
            yield image
    except Refused:
        raise
    except Exception as error:  # Pillow raises almost anything for damaged files
        why = getattr(error, "strerror", None) or error
        raise Refused(f"{path} cannot be read ({why}), wanted {wanted}") from None


def read_picture(path):
    """A picture as RGB, upright; 16 bits are divided by 257, transparency is laid over white."""
    with opened(path, "a picture, such as JPEG or PNG") as image:
        tags = getattr(image, "tag_v2", {})  # of TIFF: 258 the bits, 262 whether 0 is white
        mode, bits, white = image.mode, np.ravel(tags.get(258, 16))[0], tags.get(262)
        image = ImageOps.exif_transpose(image)
        if mode == "F" or mode.startswith("I"):
            grey = np.asarray(image)
            # Up to 255 they look like those of 8 bits.
            lowest = 256 if mode == "I" and bits != 16 else 0
            if mode == "F" or grey.min() < 0 or not lowest <= grey.max() <= 65535:
                raise Refused(f"{path} has pixels of 32 bits (mode {mode}), wanted a picture of 8 "
                              "or 16 bits a channel")
            grey = ((grey.astype(np.int32) + 128) // 257).astype(np.uint8)
            is_inverted = mode.startswith("I;16") and white == 0
            return Image.fromarray(255 - grey if is_inverted else grey).convert("RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def read_label_map(path):
    """The stored numbers [H, W] of a label map: indices of a palette, not its colours."""
    with opened(path, "a label map as PNG or TIFF") as image:
        form = image.tile[0][3] if image.tile else ""
        form = form if isinstance(form, str) else form[0]
        is_kept = image.format in ("PNG", "TIFF") and not form.endswith("I")  # the numbers are
        is_whole = image.mode in ("1", "L", "P") or image.mode.startswith("I")
        pages = getattr(image, "n_frames", 1)
        if not is_kept or not is_whole or pages > 1:
            raise Refused(f"{path} is no label map ({image.format}, mode {image.mode}, stored as "
                          f"{form}, pages: {pages}), wanted one page of whole numbers without "
                          "colours, 0 as black; save it as PNG")
        # Pillow spreads 2 and 4 bits of grey over 0 ... 255.
        return np.array(image).astype(np.int32) // {"L;2": 85, "L;4": 17}.get(form, 1)


def load(picture):
    """The picture [1, H, W, 3] as the encoder wants it."""
    rule, size = MANIFEST["picture"], np.array(picture.size)
    if rule["shorter_side"]:
        scale = rule["shorter_side"] / min(size)
        if rule["longest_side"]:
            scale = min(scale, rule["longest_side"] / max(size * scale) * scale)
        picture = picture.resize(np.maximum(size * scale + 0.5, 1).astype(int).tolist(),
                                 Image.Resampling.BILINEAR)
    return np.asarray(picture)[None]


def of_label_map(labels, loaded):
    """Masks [1, N, H, W] of a label map, the size they pass through, and what they are called."""
    rule = MANIFEST["label_map"]
    numbers, (low, high) = np.unique(labels), rule["nothing"]
    # In a map with numbers between these two, the lower one is one like the others.
    nothing = (high,) if ((low < numbers) & (numbers < high)).any() else (low, high)
    numbers = [n for n in numbers.tolist() if n >= 0 and n not in nothing]
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
    picture = read_picture(photo)
    image, opinion, kind = load(picture), {}, "classifier"
    if masks is not None:
        labels = read_label_map(masks)
        if labels.shape != picture.size[::-1]:
            raise Refused("the label map {} has {}x{} pixels, its picture {}x{}; give one of the "
                          "same size".format(masks, *labels.shape[::-1], *picture.size))
        given, ids = of_label_map(labels, np.array(image.shape[1:3]))
    elif "generator" in MANIFEST:
        given, logits = of_generator(picture)
        ids = list(range(1, logits.shape[1] + 1))
        opinion, kind = dict(generator_classes=logits), "classifier_of_generated"
    else:
        raise Refused("got no masks, and this folder has no generator that finds them; give a "
                      "label map: python run.py photo.jpg masks.png")
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
    most = MANIFEST["programs"][encoder["program"]]["inputs"]["masks"]["shape"][1]
    if isinstance(most, int) and len(ids) > most:
        raise Refused(f"{masks or photo} has {len(ids)} masks, and this folder was exported for "
                      f"{most}; export it with --masks={len(ids)}, or without --masks")
    features = program(encoder["program"])(image=image, **given)
    return program(kind)(**features, **opinion)["scores"][0, :len(ids)], ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        usage="python run.py photo.jpg masks.png\n       python run.py photo.jpg",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", help="the picture")
    parser.add_argument("masks", nargs="?", help="a label map (default: the generator's masks)")
    arguments = parser.parse_args()
    try:
        scores, ids = name(arguments.photo, arguments.masks)
    except Refused as error:
        parser.exit(2, f"{error}\n")
    for row, number in zip(scores, ids):
        best = np.argsort(-row)[:3]
        print(f"mask {number}: " + ", ".join(
            f"{MANIFEST['classes'][c]['names'][0]} {row[c]:.3f}" for c in best))
