"""Bundles: what a mask generator said of the pictures of a data set, in files.

`data/bundle_writer.py` describes the format and writes it, here it is read and checked. One bundle
serves every vocabulary its classes can speak of: with embeddings any, with logits one.
"""

import io
import threading
import typing
import zipfile
import zlib

import numpy as np
from etils import epath

from maskclippp_jax.data import bundle_writer, generator_input, transforms
from maskclippp_jax.data.generator_input import Preparation
from maskclippp_jax.runtime import storage, typed
from maskclippp_jax.vocabulary import Vocabulary

_HEADERS = threading.Lock()
# The kinds of classes, and what the manifest says of each.
KINDS = dict(none=(), closed=("vocabulary",), open=("vocabulary",),
             embeddings=("void_embedding", "logit_scale", "templates"))
_Size = typed.Size


class _Picture(typing.TypedDict):
    size: _Size
    masks: typed.Count
    mask_size: typing.NotRequired[_Size]
    loaded: typing.NotRequired[_Size]
    resized: typing.NotRequired[_Size]
    padded: typing.NotRequired[_Size]


class _Classes(typing.TypedDict):
    kind: typing.Literal[tuple(KINDS)]
    vocabulary: typing.NotRequired[list[list[str]]]
    void_embedding: typing.NotRequired[list[float]]
    logit_scale: typing.NotRequired[float]
    templates: typing.NotRequired[list[str]]


class _Augmentation(typing.TypedDict):
    short_side: typing.NotRequired[typed.Side | None]
    flipped: typing.NotRequired[bool]


class _Preparation(typing.TypedDict):
    loader_min: typed.Side | None
    loader_max: typed.Side | None
    short_side: typed.Side | None
    multiple: typed.Side
    letterbox: typing.NotRequired[typed.Side | None]


class _Kind(typing.TypedDict):
    format: str
    version: int


class _Manifest(_Kind):
    """manifest.json, as `bundle_writer` describes it."""

    masks: typing.Literal["logits", "probabilities", "binary"]
    generator: dict[str, typing.Any]
    classes: _Classes
    pictures: dict[str, _Picture]
    float32: typing.NotRequired[bool]
    stride: typing.NotRequired[typed.Side]
    preparation: typing.NotRequired[_Preparation]
    augmentation: typing.NotRequired[_Augmentation]


# What the manifest says of a picture whose masks were generated.
_GENERATED = ("loaded", "resized", "padded")


class PictureMasks(typing.NamedTuple):
    """The masks of one picture; sizes are (height, width) in pixels."""

    masks: np.ndarray                 # [Q, h, w] float logits, uint8 in 255ths, or bool
    classes: np.ndarray | None        # [Q, X] float32, see `Bundle.kind`
    enlarged: tuple[int, int] | None  # size of the padded input; None: masks of the picture itself
    kept: tuple[int, int] | None      # what of it is picture


class Bundle:
    """A bundle that can be read; nothing but its manifest is in memory.

    Attributes:
      masks: "logits", "probabilities" or "binary".
      float32: whether logits have all their digits; else they are float16.
      kind: of the classes, one of `KINDS`.
      vocabulary: what logits speak of; None for other kinds.
      width: columns of the classes: classes and void, or channels of embeddings; None of none.
      classes: what else the manifest says of the classes.
      preparation, stride: None for binary masks.
      version: of the pictures that the masks belong to.
      pictures: what the manifest says of each picture.
      generator: how the masks came to be.
    """

    def __init__(self, folder: str):
        """Opens a bundle.

        Raises:
          FileNotFoundError: no bundle there, or one that is not finished.
          ValueError: another format, or sizes that contradict each other.
        """
        self.folder = storage.path(folder)
        manifest = _read_manifest(self.folder)
        self.masks, self.classes = manifest["masks"], manifest["classes"]
        self.kind, self.pictures = self.classes["kind"], manifest["pictures"]
        self.generator, self.float32 = manifest["generator"], manifest.get("float32", False)
        self.version = transforms.Version(**manifest.get("augmentation", {}))
        self.preparation = self.stride = None
        if self.masks != "binary":
            self.preparation = Preparation(**manifest["preparation"])
            self.stride = manifest["stride"]
        self.vocabulary, self.width = None, None
        if self.kind in ("closed", "open"):
            classes = tuple(map(tuple, self.classes["vocabulary"]))
            self.vocabulary = Vocabulary(f"classes of {self.folder.name}", classes,
                                         (True,) * len(classes), tuple(range(len(classes))))
            self.width = len(classes) + 1
        elif self.kind == "embeddings":
            self.width = len(self.classes["void_embedding"])
        if self.preparation:
            for name, picture in self.pictures.items():
                self._check_sizes(name, picture)

    def __getitem__(self, image_id: str) -> "Entry":
        """A picture, with its masks to be read.

        Raises:
          ValueError: the bundle has no such picture.
        """
        if image_id not in self.pictures:
            raise ValueError(f"{self.folder} has no picture {image_id!r}, but "
                             f"{some(sorted(self.pictures))}")
        return Entry(self, image_id)

    @property
    def most_masks(self) -> int:
        """Masks of the picture that has most."""
        return max((p["masks"] for p in self.pictures.values()), default=0)

    def stored_size(self, image_id: str) -> tuple[int, int]:
        """Height and width of a picture's masks as they are stored."""
        picture = self.pictures[image_id]
        if self.stride is None:
            return tuple(picture["mask_size"])
        return tuple(side // self.stride for side in picture["padded"])

    def read(self, image_id: str) -> PictureMasks:
        """The masks of a picture.

        Raises:
          FileNotFoundError: its file is gone.
          ValueError: its arrays have other shapes than the manifest says, or hold NaN.
        """
        file = bundle_writer.file_of(self.folder, image_id)
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}, which the manifest names; make the bundle "
                                    "again")
        arrays = _read_arrays(file)
        masks = self._masks_of(arrays, file)
        if masks.ndim != 3:
            raise ValueError(f"{file} holds masks of the shape {masks.shape}, wanted one of [Q, h, "
                             "w]; make the bundle again")
        name = "class_embeddings" if self.kind == "embeddings" else "class_logits"
        classes = arrays.get(name)
        picture = self.pictures[image_id]
        if len(masks) != picture["masks"]:
            raise ValueError(f"{file} holds {len(masks)} masks, the manifest says "
                             f"{picture['masks']}; make the bundle again")
        bad = []
        if masks.dtype.kind == "f":
            bad = [n for n, mask in enumerate(masks) if np.isnan(mask).any()]
        if bad:
            raise ValueError(f"{file}: mask {bad[0]} ({len(bad)} in all) holds NaN; the generator "
                             "overflowed, export this picture in float32")
        if self.width is not None:
            if classes is None or classes.shape != (len(masks), self.width):
                got = "no " + name if classes is None else f"{name} of shape {classes.shape}"
                raise ValueError(f"{file} holds {got}, wanted {(len(masks), self.width)}: one row "
                                 f"a mask, {self._columns()}; are they of another vocabulary?")
            if np.isnan(classes).any():
                raise ValueError(f"{file}: {name} holds NaN; export this picture in float32")
        if self.masks == "binary":
            return PictureMasks(masks, classes, None, None)
        padded, stored, wanted = picture["padded"], masks.shape[1:], self.stored_size(image_id)
        if stored != wanted:
            raise ValueError(f"{file} holds masks of {stored[0]}x{stored[1]}, but the padded input "
                             f"of {padded[0]}x{padded[1]} has {wanted[0]}x{wanted[1]} cells of "
                             f"{self.stride} pixels; export the masks of the whole padded input, "
                             "not cropped")
        return PictureMasks(masks, classes, tuple(padded), tuple(picture["resized"]))

    def check_pictures(self, sizes: typing.Mapping[str, tuple[int, int]], what: str, *,
                       allow_missing: bool) -> list[str]:
        """Compares the pictures with those of a data set.

        Args:
          sizes: height and width of each picture of the data set, by its id.
          what: the data set, for messages.
          allow_missing: whether the data set may have pictures that the bundle lacks.

        Returns:
          The missing ids.

        Raises:
          ValueError: pictures of another data set, of other sizes, or missing ones.
        """
        known = [i for i in sizes if i in self.pictures]
        if sizes and not known:
            raise ValueError(f"{self.folder} has none of the {len(sizes)} pictures of {what} (it "
                             f"has {some(sorted(self.pictures))}, wanted {some(sorted(sizes))}); "
                             "it is of another data set or split")
        wrong = [i for i in known if tuple(self.pictures[i]["size"]) != tuple(sizes[i])]
        if wrong:
            raise ValueError(f"{self.folder} has other sizes than {what} for {some(wrong)}: "
                             f"{tuple(self.pictures[wrong[0]]['size'])} instead of "
                             f"{tuple(sizes[wrong[0]])}; make it from the data set's own pictures "
                             "(masks pictures)")
        missing = sorted(set(sizes) - set(known))
        if missing and not allow_missing:
            raise ValueError(f"{self.folder} lacks {some(missing)} of the {len(sizes)} of {what}; "
                             "export them, or count them as void with --allow_missing")
        return missing

    def _masks_of(self, arrays: dict, file: epath.Path) -> np.ndarray:
        if self.masks == "binary" and {"mask_bits", "mask_size"} <= arrays.keys():
            bits, size = arrays["mask_bits"], arrays["mask_size"].ravel().tolist()
            wanted = (len(size) == 2 and bits.ndim == 3 and bits.dtype == np.uint8
                      and bits.shape[1:] == (size[0], -(-size[1] // 8)))
            if not wanted:
                raise ValueError(f"{file} holds mask_bits of {bits.dtype} and shape {bits.shape}, "
                                 f"which are no masks of the size {size}; make the bundle again")
            return np.unpackbits(bits, axis=-1, count=int(size[1])).astype(bool)
        if self.masks == "probabilities" and "mask_probabilities" in arrays:
            return arrays["mask_probabilities"]
        if self.masks == "logits" and "mask_logits" in arrays:
            return arrays["mask_logits"]
        if self.masks == "logits" and "mask_logit_bytes" in arrays:
            planes = np.moveaxis(arrays["mask_logit_bytes"], 0, -1)  # [Q, h, w, 2]
            return np.ascontiguousarray(planes).view("<f2")[..., 0]
        raise ValueError(f"{file} holds {', '.join(arrays)}, no masks of the kind {self.masks!r}")

    def _columns(self) -> str:
        if self.kind == "embeddings":
            return f"{self.width} channels"
        return f"{self.width - 1} classes of its vocabulary and void"

    def _check_sizes(self, name: str, picture: dict) -> None:
        """What the manifest says of a picture must follow from how it was prepared."""
        p = self.preparation
        loaded = tuple(picture["size"])
        if p.loader_min is not None:
            loaded = transforms.shortest_edge(*loaded, p.loader_min, p.loader_max)
        loaded = resized = transforms.version_size(loaded, self.version)
        if p.short_side is not None:
            resized = tuple(side * p.short_side // min(loaded) for side in loaded)
        if p.letterbox is not None:
            resized = generator_input.letterbox_size(resized, p.letterbox)
        padded = tuple(-(-side // p.multiple) * p.multiple for side in resized)
        for key, want in (("loaded", loaded), ("resized", resized), ("padded", padded)):
            if tuple(picture.get(key, ())) != want:
                raise ValueError(
                    f"{self.folder}: picture {name} of {picture['size']} is recorded with the "
                    f"{key} size {picture.get(key)}, but its preparation ({p.facts()}, "
                    f"{self.version}) gives {list(want)}; correct whichever is wrong and export "
                    "again")


class Entry(typing.NamedTuple):
    """One picture of a bundle."""

    bundle: Bundle
    image_id: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture the masks belong to."""
        return tuple(self.bundle.pictures[self.image_id]["size"])

    def read(self) -> PictureMasks:
        return self.bundle.read(self.image_id)


def some(names: typing.Sequence[str]) -> str:
    """"2 pictures (a, b)"."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} picture{'s' * (len(names) != 1)} ({shown})"


def _read_arrays(file: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; may be called by several threads."""
    try:
        content = io.BytesIO(file.read_bytes())
        with zipfile.ZipFile(content) as parts:  # decompresses beside other threads
            arrays = {name.removesuffix(".npy"): parts.read(name) for name in parts.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{file} is no npz file ({error}); make the bundle again") from None
    # numpy reads headers with Python's parser, which up to 3.11 fails now and then when two
    # threads are in it ("AST constructor recursion depth mismatch").
    try:
        with _HEADERS:
            return {name: np.load(io.BytesIO(data), allow_pickle=False)
                    for name, data in arrays.items()}
    except Exception as error:  # numpy reads headers with Python's parser: anything may come
        raise ValueError(f"{file} holds no arrays ({error}); make the bundle again") from None


def _read_manifest(folder: epath.Path) -> _Manifest:
    file = folder / bundle_writer.MANIFEST
    if not file.is_file():
        if (folder / bundle_writer.FOLDER).is_dir():
            raise FileNotFoundError(f"the bundle in {folder} is not finished; start the command "
                                    "that writes it again")
        raise FileNotFoundError(f"no bundle in {folder}: wanted {bundle_writer.MANIFEST} and "
                                f"{bundle_writer.FOLDER}/<id>.npz, as launch/export and "
                                "`maskclippp masks` write them")
    data = file.read_bytes()
    kind = tuple(typed.decode(data, _Kind, file).values())
    if kind != (bundle_writer.FORMAT, bundle_writer.VERSION):
        raise ValueError(f"{file} is of the format {kind}, wanted "
                         f"{(bundle_writer.FORMAT, bundle_writer.VERSION)}")
    manifest = typed.decode(data, _Manifest, file)
    lacking = [key for key in KINDS[manifest["classes"]["kind"]]
               if key not in manifest["classes"]]
    is_binary = manifest["masks"] == "binary"
    if not is_binary:
        lacking += [key for key in ("stride", "preparation") if key not in manifest]
    for name, picture in manifest["pictures"].items():
        wanted = ("mask_size",) if is_binary else _GENERATED
        lacking += [f"{key} of {name}" for key in wanted if key not in picture]
    if lacking:
        raise ValueError(f"{file} does not say {', '.join(lacking[:5])}, see "
                         "maskclippp_jax/data/bundle_writer.py")
    return manifest
