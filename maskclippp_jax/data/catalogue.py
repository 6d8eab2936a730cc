"""The data sets that `prepare` knows: what they are, where to get them, how to read them."""

import dataclasses
import typing

from maskclippp_jax.data.prepare import ade20k, scenes


@dataclasses.dataclass(frozen=True)
class Dataset:
    name: str
    title: str
    vocabulary: str             # names file in data/names
    licence: str
    download: str               # where its owner publishes it
    expected: str               # what --raw_dir must hold; "" if it is generated
    published: dict[str, int]   # pictures of each split
    # raw_dir -> (items of each split, item -> record); see records.build
    read: typing.Callable[[str | None], tuple[dict[str, typing.Sequence], typing.Callable]]


DATASETS = {d.name: d for d in (
    Dataset(
        "scenes", "generated scenes, all classes (quick start, evaluation)", "scenes",
        "code: this project's; photographs and digits: see data/scenes.py", "generated", "",
        {"validation": 600}, scenes.read_all),
    Dataset(
        "scenes_seen", "generated scenes, seen classes only (quick start, tuning)", "scenes_seen",
        "code: this project's; photographs and digits: see data/scenes.py", "generated", "",
        {"train": 4000, "validation": 200}, scenes.read_seen),
    Dataset(
        "ade20k_150", "ADE20K, 150 classes, semantic (SceneParse150)", "ade20k_150",
        "non-commercial research", "sceneparsing.csail.mit.edu, ADEChallengeData2016.zip",
        ade20k.EXPECTED, {"train": 20210, "validation": 2000}, ade20k.read),
)}
