"""The published MaskCLIP++ models: names, files, the configurations they belong to, quality.

The numbers are the authors' (github.com/HVision-NKU/MaskCLIPpp), whose files lie behind pages of
Google Drive that only a browser gets past. Of the first file they tell the name as well; the others
are called after it.
"""

import typing


class PublishedTuned(typing.NamedTuple):
    name: str     # the short one, for people
    drive: str    # the id of its file there
    file: str     # what the download is to be called
    config: str   # the shipped configuration it belongs to
    quality: str  # on ADE20K, as published, with masks of a generator

    @property
    def source(self) -> str:
        """The address of its page."""
        return f"https://drive.google.com/file/d/{self.drive}/view"


def _tuned(name: str, config: str, clip: str, drive: str, quality: str) -> PublishedTuned:
    data = "coco-stuff" if config.startswith("coco_stuff") else "coco-pan"
    return PublishedTuned(name, drive, f"maskclippp_{data}_{clip}.pth", config, quality)


MODELS = (
    _tuned("maskclippp-l", "coco_stuff_eva02_l14_336", "eva-clip-vit-l-14-336_wtext",
           "1I5SiU5S-BjgoGU73ndocg-e2jo80mP1n", "mIoU 38.2 (maftp-l)"),
    _tuned("maskclippp-convnext-b", "coco_stuff_convnext_b", "clip-convnext-base",
           "1SekxdQPCMXLaAd8mM0P20DbHKhtIYL3u", "mIoU 35.4 (maftp-b)"),
    _tuned("maskclippp-b-pan", "coco_panoptic_eva02_b16", "eva-clip-vit-b-16",
           "11n8VRcfaTsb7s7I3i7dlvq3Jy4GSgDr2", "mIoU 33.8, PQ 24.4 (fcclip-b)"),
    _tuned("maskclippp-l-pan", "coco_panoptic_eva02_l14_336", "eva-clip-vit-l-14-336",
           "1xMlDmgiVuShx-KWzLzOB-0_qvawIAa9m", "mIoU 36.6, PQ 27.3 (fcclip-l)"),
    _tuned("maskclippp-g-pan", "coco_panoptic_eva01_g14_plus", "eva-clip-vit-g-14-plus",
           "1hCj0eZdTKbt5DusULFGBk3Bk8bxUGGm-", "mIoU 36.8, PQ 27.7 (fcclip-l)"),
    _tuned("maskclippp-convnext-b-pan", "coco_panoptic_convnext_b", "clip-convnext-base",
           "1lxlnxVICytERs1FsY5N7LdaoYDyenA1o", "mIoU 35.1, PQ 24.5 (fcclip-b)"),
    _tuned("maskclippp-convnext-l-pan", "coco_panoptic_convnext_l", "clip-convnext-large",
           "1XMW3L2dOtlDQapydtoqTfzFVW-VZqcoX", "mIoU 35.6, PQ 26.5 (fcclip-l)"),
    _tuned("maskclippp-convnext-xxl-pan", "coco_panoptic_convnext_xxl", "clip-convnext-xxlarge",
           "1LjVW7CNkvyFzxOW4rbgax1kmWY1lQ3f3", "mIoU 36.4, PQ 27.1 (fcclip-l)"),
    _tuned("maskclippp-rn50x16-pan", "coco_panoptic_rn50x16", "clip-rn50x16",
           "1eCxFDGNATeB1pqmRnEO6OD8GZG-Wf4Hs", "mIoU 29.3, PQ 21.8 (fcclip-b)"),
)


def find(name: str) -> PublishedTuned | None:
    """The model of a short name."""
    return next((entry for entry in MODELS if entry.name == name), None)
