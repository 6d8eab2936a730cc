"""Writes bundles of masks. Needs numpy only and imports nothing of ours, so that the scripts in
launch/export can use it inside any other environment; `data/bundles.py` reads what it writes.

    <bundle>/manifest.json      how all masks were made; written last
    <bundle>/masks/<id>.npz     one file for each picture, id encoded as in URLs

manifest.json holds

    format, version   "maskclippp masks", 1
    masks             "logits": before the sigmoid, of the generator's whole padded input, float16;
                      "probabilities": uint8, 255 = 1, likewise (smaller; moves mIoU by hundredths);
                      "binary": masks of any size that cover the picture, from files or from SAM
    float32           true: logits keep all their digits (twice as large; moves nothing visible)
    stride            pixels of the padded input to a cell of the masks
    generator         name, checkpoint (SHA-256 of its file), and whatever else helps
    preparation       loader_min, loader_max, short_side, multiple: how pictures were resized; with
                      letterbox, a side in pixels, they were made to fit a square after that
                      (`generator_input.letterbox`)
    augmentation      short_side, flipped: how the loaded picture was changed before, if the bundle
                      is of a version for test-time augmentation (`data.transforms.Version`)
    classes           kind "none";
                      "closed": vocabulary, logits of the classes the generator was trained on;
                      "open": vocabulary, logits of the classes the pictures are evaluated with;
                      "embeddings": void_embedding, logit_scale, templates: unit vectors in the
                      space of the generator's text tower, from which logits of any vocabulary come
    pictures          for each id: size (height, width); masks: how many; of generated masks
                      loaded (and augmented), resized, padded: the picture's sizes on its way into
                      the generator;
                      of binary ones mask_size

A picture's file holds its masks under the first name, its classes under the second:

    logits            mask_logit_bytes uint8 [2, Q, h, w], low and high bytes apart, which compress
                      better; or mask_logits [Q, h, w] float16, as a person would write it, or
                      float32
    probabilities     mask_probabilities uint8 [Q, h, w]
    binary            mask_bits uint8 [Q, h, ceil(w / 8)] (numpy.packbits) and mask_size int [2]
    open, closed      class_logits float32 [Q, K + 1], void last
    embeddings        class_embeddings float32 [Q, E]
    all               sizes int32 [4, 2]: size, loaded, resized, padded (binary: size alone counts),
                      and count, the number of masks
"""

import json
import os
import pathlib
import urllib.parse

import numpy as np

FORMAT, VERSION = "maskclippp masks", 1
MANIFEST, FOLDER = "manifest.json", "masks"
_BEGUN = ".begun.json"  # what the manifest will say, until it is there
_MOST = 6e4  # float16 ends soon after; a sigmoid is 0 or 1 long before


class Writer:
    """Writes a bundle, or goes on with one that was stopped."""

    def __init__(self, folder, *, masks, classes, generator, preparation=None, stride=4,
                 augmentation=None, float32=False):
        """Starts or goes on; see above for the values.

        Raises:
          FileExistsError: the bundle is finished.
          ValueError: an unknown kind of masks, or the bundle was begun with other values.
        """
        if masks not in ("logits", "probabilities", "binary"):
            raise ValueError(f"got masks={masks!r}, wanted logits, probabilities or binary")
        refuse_finished(folder)
        self.folder = pathlib.Path(folder)
        self.facts = dict(format=FORMAT, version=VERSION, masks=masks, generator=generator,
                          classes=classes)
        if masks != "binary":
            self.facts.update(stride=stride, preparation=preparation)
        if float32:
            self.facts.update(float32=True)
        if augmentation is not None:
            self.facts.update(augmentation=augmentation)
        begun, text = self.folder / _BEGUN, json.dumps(self.facts, sort_keys=True)
        if begun.exists() and begun.read_text() != text:
            raise ValueError(f"{folder} was begun with another generator or other settings; give "
                             "the same again, or remove it")
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        begun.write_text(text)

    def has(self, image_id):
        """Whether a picture was written before."""
        return file_of(self.folder, image_id).exists()

    def add(self, image_id, masks, sizes, classes=None):
        """Writes one picture's masks.

        Args:
          image_id: of the picture, as in the data set.
          masks: [Q, h, w]: logits, probabilities in [0, 1], or booleans.
          sizes: (size,) of binary masks, else (size, loaded, resized, padded), each height, width.
          classes: [Q, K + 1] or [Q, E] float; None if the kind of classes is "none".
        """
        masks, kind = np.asarray(masks), self.facts["masks"]
        if self.facts.get("float32"):
            arrays = dict(mask_logits=masks.astype("<f4"))
        elif kind == "logits":
            halves = np.clip(masks, -_MOST, _MOST).astype("<f2")
            planes = np.ascontiguousarray(halves).view(np.uint8).reshape(*masks.shape, 2)
            arrays = dict(mask_logit_bytes=np.moveaxis(planes, -1, 0))
        elif kind == "probabilities":
            arrays = dict(mask_probabilities=np.round(masks * 255.0).astype(np.uint8))
        else:
            arrays = dict(mask_bits=np.packbits(masks.astype(bool), axis=-1),
                          mask_size=np.array(masks.shape[1:], np.int32))
        if classes is not None:
            name = "embeddings" if self.facts["classes"]["kind"] == "embeddings" else "logits"
            arrays[f"class_{name}"] = np.asarray(classes, np.float32)
        sizes = np.resize(np.array(sizes, np.int32), (4, 2))
        path = file_of(self.folder, image_id)
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            np.savez_compressed(file, sizes=sizes, count=len(masks), **arrays)
        os.replace(temporary, path)

    def finish(self, files=None):
        """Writes the manifest of all pictures in the folder.

        Args:
          files: for each id the name of the picture's file, if it is to be recorded.
        """
        pictures = {}
        for path in sorted((self.folder / FOLDER).glob("[!.]*.npz")):
            image_id = urllib.parse.unquote(path.name[:-len(".npz")])
            with np.load(path) as arrays:
                sizes, count = arrays["sizes"].tolist(), int(arrays["count"])
                size = arrays["mask_size"].tolist() if "mask_size" in arrays.files else None
            names = ("size", "loaded", "resized", "padded")
            facts = dict(zip(names[:1] if self.facts["masks"] == "binary" else names, sizes))
            facts["masks"] = count
            if size:
                facts["mask_size"] = size
            if files and image_id in files:
                facts["file"] = str(files[image_id])
            pictures[image_id] = facts
        temporary = self.folder / f".{MANIFEST}"
        temporary.write_text(json.dumps(dict(self.facts, pictures=pictures), indent=1) + "\n")
        os.replace(temporary, self.folder / MANIFEST)
        (self.folder / _BEGUN).unlink()


def refuse_finished(folder):
    """Raises FileExistsError if a folder holds a finished bundle."""
    if (pathlib.Path(folder) / MANIFEST).exists():
        raise FileExistsError(f"{folder} holds a finished bundle; choose another folder, or remove "
                              "it")


def file_of(folder, image_id):
    """The file of a picture's masks."""
    return folder / FOLDER / f"{urllib.parse.quote(image_id, safe=' ')}.npz"
