"""The published mask generators that can be read here: names, places, sizes, classes, quality.

The numbers are the publishers': github.com/tue-mps/eomt, bytedance/fc-clip, jiaosiyu1999/MAFT-Plus
and facebookresearch/Mask2Former. FC-CLIP B is by MaskCLIP++'s authors, who published no quality of
it alone. Licences are as the publishers state them; look there before relying on one.
"""

import dataclasses
import difflib
import pathlib
import typing

from maskclippp_jax.generators.eomt import EoMTConfig
from maskclippp_jax.generators.fcclip import FCCLIPConfig
from maskclippp_jax.generators.mask2former import Mask2FormerConfig

# The small one that ships with the project (launch/pretrain_quickstart_generator.py made it).
QUICKSTART_GENERATOR = str(
    pathlib.Path(__file__).parents[1] / "assets" / "quickstart_eomt.safetensors")


class PublishedGenerator(typing.NamedTuple):
    name: str        # the short one, for people
    # A path for `hub.fetch`, or an address to download from in a browser.
    source: str
    file: str        # what such a download is called; of the hub's: ""
    task: str        # "panoptic", "instance" or "semantic": what it was trained for
    vocabulary: str  # the classes it was trained on, see `Vocabulary.shipped`
    quality: str     # as published; of open ones on ADE20K, of the others on their own data
    millions: float  # of parameters, without those of a text tower
    licence: str     # of the weights, or of their repository
    config: EoMTConfig | FCCLIPConfig | Mask2FormerConfig

    @property
    def repository(self) -> str:
        """On the hub; of others their address."""
        return self.source.removeprefix("hf://")


def _eomt(name: str, repository: str, vocabulary: str, quality: str, millions: float,
          config: EoMTConfig) -> PublishedGenerator:
    task = repository.split("_eomt")[0].split("_")[-1]
    return PublishedGenerator(name, f"hf://tue-mps/{repository}", "", task, vocabulary, quality,
                              millions, "see the hub", config)


def _drive(name: str, drive: str, file: str, vocabulary: str, quality: str, millions: float,
           licence: str, config: FCCLIPConfig) -> PublishedGenerator:
    task = "panoptic" if vocabulary == _COCO else "stuff and things"
    return PublishedGenerator(name, f"https://drive.google.com/file/d/{drive}/view", file, task,
                              vocabulary, quality, millions, licence, config)


def _mask2former(name: str, folder: str, ending: str, quality: str, millions: float,
                 config: Mask2FormerConfig) -> PublishedGenerator:
    """Of the model zoo, whose files are all called alike; MaskCLIP++ puts the folder in front."""
    address = ("https://dl.fbaipublicfiles.com/maskformer/mask2former/coco/panoptic/"
               f"{folder}/model_final_{ending}.pkl")
    return PublishedGenerator(name, address, f"{folder}_final_{ending}.pkl", "panoptic", _COCO,
                              quality, millions, "CC-BY-NC-4.0", config)


_COCO, _STUFF, _ADE, _C = "coco_panoptic_133", "coco_stuff_171", "ade20k_150", EoMTConfig
_OF_FCCLIP, _OF_MAFTP = "see bytedance/fc-clip", "MIT"

GENERATORS = (
    PublishedGenerator("quickstart", QUICKSTART_GENERATOR, "", "panoptic", "scenes_seen",
                       "PQ 65.5 with perfect names", 1.2, "Apache-2.0", _C.quickstart()),

    _eomt("eomt-s-640", "coco_panoptic_eomt_small_640_2x", _COCO, "PQ 46.7", 24.0,
          _C.coco_panoptic_small_640_2x()),
    _eomt("eomt-b-640", "coco_panoptic_eomt_base_640_2x", _COCO, "PQ 51.6", 93.7,
          _C.coco_panoptic_base_640_2x()),
    _eomt("eomt-l-640", "coco_panoptic_eomt_large_640", _COCO, "PQ 56.0", 316.7,
          _C.coco_panoptic_large_640()),
    _eomt("eomt-l-1280", "coco_panoptic_eomt_large_1280", _COCO, "PQ 58.3", 321.6,
          _C.coco_panoptic_large_1280()),
    _eomt("eomt-g-640", "coco_panoptic_eomt_giant_640", _COCO, "PQ 57.0", 1163.6,
          _C.coco_panoptic_giant_640()),
    _eomt("eomt-g-1280", "coco_panoptic_eomt_giant_1280", _COCO, "PQ 59.2", 1171.0,
          _C.coco_panoptic_giant_1280()),
    _eomt("eomt-l-640-ade20k", "ade20k_panoptic_eomt_large_640", _ADE, "PQ 50.6", 316.7,
          _C.ade20k_panoptic_large_640()),
    _eomt("eomt-l-1280-ade20k", "ade20k_panoptic_eomt_large_1280", _ADE, "PQ 51.7", 321.6,
          _C.ade20k_panoptic_large_1280()),
    _eomt("eomt-g-640-ade20k", "ade20k_panoptic_eomt_giant_640", _ADE, "PQ 51.3", 1163.6,
          _C.ade20k_panoptic_giant_640()),
    _eomt("eomt-g-1280-ade20k", "ade20k_panoptic_eomt_giant_1280", _ADE, "PQ 52.8", 1171.0,
          _C.ade20k_panoptic_giant_1280()),
    _eomt("eomt-l-512-ade20k-semantic", "ade20k_semantic_eomt_large_512", _ADE, "mIoU 58.4", 316.0,
          _C.ade20k_semantic_large_512()),
    _eomt("eomt-l-1024-cityscapes", "cityscapes_semantic_eomt_large_1024", "cityscapes_19",
          "mIoU 84.2", 319.0, _C.cityscapes_semantic_large_1024()),
    _eomt("eomt-l-640-instances", "coco_instance_eomt_large_640", "coco_instance_80",
          "AP 45.2", 316.6, _C.coco_instance_large_640()),
    _eomt("eomt-l-1280-instances", "coco_instance_eomt_large_1280", "coco_instance_80",
          "AP 48.8", 321.6, _C.coco_instance_large_1280()),

    _drive("fcclip-b", "1fSFPPTwxF-ekMxAmIo01ssdbC79wwwml",
           "fcclip_coco-pan_clip-convnext-base.pth", _COCO, "", 108.0, _OF_FCCLIP,
           FCCLIPConfig.fcclip_base()),
    _drive("fcclip-l", "1-91PIns86vyNaL3CzMmDD39zKGnPMtvj",
           "fcclip_coco-pan_clip-convnext-large.pth", _COCO, "PQ 26.8, mIoU 34.1", 216.9,
           _OF_FCCLIP, FCCLIPConfig.fcclip_large()),
    _drive("maftp-b", "1BeEeKOnWWIWIH-QWK_zLhAPUzCOnHuFG", "maftp_b.pth", _STUFF, "mIoU 34.6",
           107.9, _OF_MAFTP, FCCLIPConfig.maftp_base()),
    _drive("maftp-l", "1EQo5guVuKkSSZj4bv0FQN_4X9h_Rwfe5", "maftp_l.pth", _STUFF, "mIoU 36.1",
           216.9, _OF_MAFTP, FCCLIPConfig.maftp_large()),
    _drive("maftp-l-pano", "1znk_uco8fwvbA0kndy4kGyVp22KbQr6g", "maftp_l_pano.pth", _COCO,
           "PQ 27.1", 216.9, _OF_MAFTP, FCCLIPConfig.maftp_large()),

    _mask2former("mask2former-t", "maskformer2_swin_tiny_bs16_50ep", "9fd0ae", "PQ 53.2", 47.4,
                 Mask2FormerConfig.coco_panoptic_tiny()),
    _mask2former("mask2former-s", "maskformer2_swin_small_bs16_50ep", "a407fd", "PQ 54.6", 68.8,
                 Mask2FormerConfig.coco_panoptic_small()),
    _mask2former("mask2former-b", "maskformer2_swin_base_IN21k_384_bs16_50ep", "54b88a", "PQ 56.4",
                 106.9, Mask2FormerConfig.coco_panoptic_base()),
    _mask2former("mask2former-l", "maskformer2_swin_large_IN21k_384_bs16_100ep", "f07440",
                 "PQ 57.8", 215.5, Mask2FormerConfig.coco_panoptic_large()),
)


def find(name: str) -> PublishedGenerator | None:
    """The generator of a short name, of a repository's name with or without its owner, or of the
    name of a published file without its ending."""
    for entry in GENERATORS:
        if name in (entry.name, entry.repository, entry.repository.split("/")[1]) or (
                entry.file and name == pathlib.Path(entry.file).stem):
            return entry
    return None


def of_config(config: EoMTConfig | FCCLIPConfig | Mask2FormerConfig) -> list[PublishedGenerator]:
    """The published generators of these sizes; no two that differ in their task have the same,
    but for MAFT+ L."""
    return [entry for entry in GENERATORS if _sizes(entry.config) == _sizes(config)]


def _sizes(config):
    """A configuration without the size pictures are resized to, which no file tells."""
    if isinstance(config, EoMTConfig):
        return config
    return dataclasses.replace(config, short_side=None)


def nearest(name: str) -> str:
    """A hint for a name that nobody published: "; did you mean ...?", or nothing."""
    near = difflib.get_close_matches(name, [e.name for e in GENERATORS], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
