"""What the scripts beside this one share: reading pictures and bringing them to a generator.

The scripts run in the environment of a generator (PyTorch) and import nothing of maskclippp_jax but
its file data/bundle_writer.py, which needs numpy only: run them from a checkout, or copy that file
beside them.
"""

import glob
import math
import os
import pathlib
import sys
import urllib.parse

import numpy as np
from PIL import Image, ImageOps

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "maskclippp_jax" / "data"))

from bundle_writer import Writer  # noqa: E402, F401


def find(pattern):
    """Files by the id of their picture: {id: path}. `masks pictures` names files so."""
    files = {urllib.parse.unquote(pathlib.Path(f).stem): f
             for f in sorted(glob.glob(pattern)) if os.path.isfile(f)}
    if not files:
        sys.exit(f"error: no file matches {pattern!r}")
    return files


def read(path):
    """A picture as [H, W, 3] uint8 RGB, upright."""
    with Image.open(path) as picture:
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))


def load(image, loader_min, loader_max):
    """The loader's resize: 8 bits, antialiased, shorter side to `loader_min`; 0: none."""
    if not loader_min:
        return image
    height, width = image.shape[:2]
    scale = loader_min / min(height, width)
    size = (loader_min, scale * width) if height < width else (scale * height, loader_min)
    if max(size) > loader_max:
        size = [side * (loader_max / max(size)) for side in size]
    size = [math.floor(side + 0.5) for side in size]
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resized_size(loaded, short_side):
    """Size after the generator's own resize, cut to whole pixels; 0: none."""
    if not short_side:
        return tuple(loaded)
    return tuple(side * short_side // min(loaded) for side in loaded)


def padded_size(size, multiple):
    return tuple(-(-side // multiple) * multiple for side in size)


def to_network(image, short_side, multiple, mean, std):
    """A loaded picture as the generator sees it.

    Args:
      image: [h, w, 3] uint8.
      short_side: of its resize without antialiasing; 0: none.
      multiple: its sides are padded to a multiple, with zeros after normalising.
      mean, std: of RGB in 0 ... 255.

    Returns:
      torch float32 [1, 3, H, W], and its size before padding.
    """
    import torch

    pixels = (image.astype(np.float32) - np.float32(mean)) / np.float32(std)
    pixels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    size = resized_size(image.shape[:2], short_side)
    if size != tuple(image.shape[:2]):
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear",
                                                 align_corners=False)
    padded = padded_size(size, multiple)
    return torch.nn.functional.pad(pixels, (0, padded[1] - size[1], 0, padded[0] - size[0])), size
