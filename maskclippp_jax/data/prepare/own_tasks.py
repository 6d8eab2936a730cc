"""A JSON file of Label Studio: one task a picture."""

import functools
import hashlib

from maskclippp_jax.data.build import Reading
from maskclippp_jax.data.prepare import own_masks, paths
from maskclippp_jax.data.prepare.raw import File, Files
from maskclippp_jax.runtime import storage


def are_in(path: str) -> bool:
    """Whether a JSON file is a list, which no file of COCO is."""
    head = storage.path(path).read_bytes()[:64].removeprefix(b"\xef\xbb\xbf")
    return head.lstrip().startswith(b"[")


def read(pictures_at: Files, pattern: str, path: str, masks: own_masks.Masks) -> Reading:
    """Finds the pictures of the tasks.

    Args:
      pictures_at: where they are.
      pattern: of their names' endings.
      path: of the JSON.
      masks: the classes.

    Raises:
      ValueError: it is no JSON of Label Studio, or two tasks are of one picture.
    """
    file = File((), path)
    tasks = file.json(list[own_masks.Task])
    if not tasks:
        raise ValueError(f"{path} is an empty list, wanted a file of COCO's form or the tasks of "
                         "Label Studio")
    pictures = paths.Paths(pictures_at.find(f"(.+{pattern})"))
    items, lost, seen = [], [], set()
    for n, task in enumerate(tasks):
        name = next((v for v in task["data"].values() if isinstance(v, str)), None)
        if name is None:
            raise ValueError(f"{path}: the task {task.get('id', n)} has no picture in its data")
        picture = pictures.find(_without_id(name)) or pictures.find(name)
        if picture is None:
            lost.append(name)
            continue
        if picture[0] in seen:
            raise ValueError(f"{path} has two tasks of the picture {picture[0]}; keep one")
        seen.add(picture[0])
        items.append((*picture, task))
    missing = [f"{len(lost)} pictures that {path} names are missing, e.g. "
               f"{', '.join(sorted(lost)[:3])}"] if lost else []
    content = hashlib.sha1(file.read()).hexdigest()
    fingerprint = pictures_at.fingerprint + content + repr(masks.left_out)
    note = f"took the labels for those of Label Studio, {len(items)} tasks have a picture"
    return Reading({"train": items}, functools.partial(own_masks.from_task, masks), missing,
                   fingerprint, notes=[note])


def _without_id(name: str) -> str:
    """Label Studio puts some characters in front of the name of what was uploaded: "1a2b-p.jpg"."""
    folder, _, file = name.rpartition("/")
    first, dash, rest = file.partition("-")
    return f"{folder}/{rest}" if dash and rest and first.isalnum() else name
