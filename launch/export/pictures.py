"""What the scripts beside this one share: reading pictures, bringing them to a generator, bundles.

The scripts run in the environment of a generator (PyTorch) and import nothing of maskclippp_jax but
its file data/bundle_writer.py, which needs numpy only: run them from a checkout, or copy that file
beside them.
"""

import collections
import glob
import math
import os
import pathlib
import sys
import urllib.parse

import numpy as np
from PIL import Image, ImageOps

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "maskclippp_jax" / "data"))

from bundle_writer import MANIFEST, Writer  # noqa: E402, F401

_LONGEST = 4000  # pixels, longer side of a version


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


class Version(collections.namedtuple("Version", "short_side flipped", defaults=(None, False))):
    """What test-time augmentation makes of a loaded picture; every bundle is of one version.

    short_side: pixels its shorter side is brought to; None: as it was loaded.
    flipped: whether it is mirrored left to right, after that.
    """

    @property
    def name(self):
        """Of its bundle's folder."""
        size = f"short_{self.short_side}" if self.short_side else "as_loaded"
        return size + "_flipped" * self.flipped

    @property
    def augmentation(self):
        """What the manifest says of it; None: nothing, it is the picture itself."""
        return self._asdict() if self != Version() else None

    def of(self, image):
        """A loaded picture [H, W, 3] uint8 in this version."""
        resized = load(image, self.short_side, _LONGEST)
        return np.ascontiguousarray(resized[:, ::-1]) if self.flipped else resized


def versions(short_sides=(), flip=False):
    """A version for every size, each also mirrored if `flip`; without sizes: as loaded."""
    return [Version(short, flipped) for short in short_sides or (None,)
            for flipped in (False, True)[:1 + flip]]


def add_version_flags(parser):
    """Flags of scripts that write bundles of versions."""
    parser.add_argument("--short_sides", type=short_sides, default=(), help="write a bundle for "
                        "each of these sizes of the loaded picture, such as 400,500,600, into "
                        "folders below --bundle, for test-time augmentation")
    parser.add_argument("--flip", action="store_true", help="and one of each mirrored")


def short_sides(text):
    """"400,500" -> (400, 500)."""
    sides = tuple(map(int, text.split(",")))
    if min(sides) < 1 or len(set(sides)) < len(sides):
        raise ValueError
    return sides


def write_bundles(args, files, segment, **facts):
    """Writes the bundle of every version, or goes on with them.

    Args:
      args: bundle, short_sides, flip of the command line.
      files: see `find`.
      segment: `(image, version) -> (masks, sizes)`, or also classes: what `Writer.add` wants of a
        picture [H, W, 3] uint8, as it was read, in a version.
      facts: how the masks are made, see `Writer`.
    """
    wanted = versions(args.short_sides, args.flip)
    folders = {version: pathlib.Path(args.bundle) / version.name for version in wanted}
    if wanted == [Version()]:
        folders = {Version(): args.bundle}
    elif all((folder / MANIFEST).exists() for folder in folders.values()):
        sys.exit(f"error: {args.bundle} holds finished bundles of all these versions; choose "
                 "another folder, or remove them")
    for version, folder in folders.items():
        if len(folders) > 1 and (folder / MANIFEST).exists():
            print(f"{folder} is finished", flush=True)
            continue
        writer = Writer(folder, augmentation=version.augmentation, **facts)
        for number, (image_id, path) in enumerate(files.items(), start=1):
            if not writer.has(image_id):
                writer.add(image_id, *segment(read(path), version))
            print(f"{number}/{len(files)}  {image_id}", flush=True)
        writer.finish({image_id: pathlib.Path(path).name for image_id, path in files.items()})
