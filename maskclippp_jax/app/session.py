"""From what people ask to an answer; what stays of one visit between two questions."""

import dataclasses
import hashlib
import pathlib
import typing
import warnings

import numpy as np

from maskclippp_jax import api
from maskclippp_jax.app import uploads
from maskclippp_jax.app.uploads import Limits, Upload
from maskclippp_jax.data import label_maps, regions

GENERATOR, REGIONS, FILE, DRAWN = "generator", "regions", "file", "drawn"  # where masks are from


class Question(typing.NamedTuple):
    """All that an answer depends on."""

    picture: Upload | None
    words: str = ""                # "cat; dog, puppy"
    shipped: str = ""              # name of a shipped vocabulary, in place of words
    names_file: Upload | None = None
    masks: str = GENERATOR
    masks_file: Upload | None = None
    drawn: typing.Sequence[np.ndarray | None] = ()  # layers of the editor
    distractors: str = ""
    minimum_score: float = 0.0


@dataclasses.dataclass(eq=False)
class Session:
    """One visit. The picture stays encoded until another one, or other masks, are asked about."""

    key: tuple = ()
    size: tuple[int, int] = (0, 0)  # (height, width) of the picture as it came
    seen: api.Seen | None = None
    masks_notes: tuple[str, ...] = ()  # sentences about its masks
    result: api.Result | None = None
    code: str = ""                 # Python that gives the same
    picture: str = ""              # what its owner calls the picture
    notes: tuple[str, ...] = ()    # sentences about this answer

    @property
    def stem(self) -> str:
        """What results are called."""
        return pathlib.PurePath(self.picture).stem or "picture"


def answer(model: api.Model, loading: str, question: Question, session: Session, limits: Limits
           ) -> Session:
    """Answers a question; the picture is encoded only if it or its masks are others than before.

    Args:
      model: what names.
      loading: the line of Python that loads it.
      question: see there.
      session: what is known of this visit.
      limits: see there.

    Raises:
      ValueError: the question cannot be answered; the sentence is for its author.
    """
    if question.picture is None:
        raise ValueError("there is no picture yet; drop one on the left, or take an example")
    vocabulary = uploads.read_words(question.words, question.shipped, question.names_file, limits)
    distractors = (uploads.classes_of(question.distractors, limits)
                   if question.distractors.strip() else ())
    key = _key_of(question)
    size, seen, masks_notes = session.size, session.seen, session.masks_notes
    if key != session.key:
        pixels = uploads.read_picture(question.picture, limits)
        size = pixels.shape[:2]
        picture, masks = _picture_and_masks(model, question, pixels, limits)
        seen = model.seen(picture, masks)
        masks_notes = _notes_of_masks(question, masks)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        result = seen.name(vocabulary, minimum_score=question.minimum_score,
                           distractors=distractors)
    # A small model knows few words, which it says with all of them.
    notes = [*masks_notes, *(str(w.message).split("; it knows")[0] for w in told
                             if w.category is UserWarning)]
    if not len(result):
        notes.append("no masks were found in this picture")
    else:
        missing = len(result) - len(result.panoptic[1])
        if missing and not question.minimum_score and all(result.vocabulary.is_thing):
            notes.append(f"{missing} of {len(result)} masks are no segments, as they are unsure or "
                         "mostly covered by others; the table has all")
    if size != result.image.shape[:2]:
        notes.append(f"the picture was scaled from {size[1]}x{size[0]} to "
                     f"{result.image.shape[1]}x{result.image.shape[0]} pixels; label maps and COCO "
                     "files have its own size")
    return Session(key, size, seen, masks_notes, result, code_of(loading, question, size, limits),
                   question.picture.name, tuple(notes))


def _notes_of_masks(question: Question, masks: typing.Any) -> tuple[str, ...]:
    """Sentences about what `_picture_and_masks` took for the masks."""
    if question.masks != FILE or masks.ndim != 2 or not label_maps.may_be_white_mask(
            np.unique(masks)):
        return ()
    return (f"{question.masks_file.name} holds 0 and 255 alone, and 255 means nothing; if it is "
            "one mask in white, invert it",)


def _key_of(question: Question) -> tuple:
    """Equal for questions about the same picture with the same masks."""
    masks = question.masks
    if masks == FILE:
        masks += question.masks_file.path if question.masks_file else ""
    if masks == DRAWN:
        digest = hashlib.sha256()
        for layer in question.drawn:
            digest.update(b"" if layer is None else np.ascontiguousarray(layer))
        masks += digest.hexdigest()
    return question.picture.path, masks  # of the server, which names files by what they hold


def _picture_and_masks(model: api.Model, question: Question, pixels: np.ndarray, limits: Limits):
    """What `Model.seen` takes."""
    if question.masks == FILE:
        if question.masks_file is None:
            raise ValueError("there is no file of masks yet; give a label map (PNG) or COCO's JSON")
        return pixels, uploads.read_masks(question.masks_file, pixels.shape[:2], limits,
                                          question.picture.name)
    pixels = uploads.scaled(pixels, limits)
    if question.masks == DRAWN:
        return pixels, uploads.drawn_masks(question.drawn, pixels.shape[:2])
    if question.masks == REGIONS:
        return pixels, regions.superpixels
    if model.generator is None:
        raise ValueError("this page was started without --generator; choose where masks come from")
    return pixels, model.generator


def code_of(loading: str, question: Question, size: tuple[int, int], limits: Limits) -> str:
    """The lines of Python that give the same answer.

    Args:
      loading: see `answer`.
      question: see there.
      size: (height, width) of the picture.
      limits: they tell whether the picture was scaled.
    """
    imports, lines = ["import maskclippp_jax as mc"], [f"model = {loading}"]
    picture = repr(question.picture.name)
    working = size if question.masks == FILE else uploads.working_size(size, limits)
    if working != size:
        imports.append("from maskclippp_jax.data import images, transforms")
        lines.append(f"picture = transforms.resize_image(images.read_image({picture}), {working})")
        picture = "picture"
    if question.names_file is not None:
        classes = f"mc.Vocabulary.from_file({question.names_file.name!r})"
    elif question.shipped:
        classes = f"mc.Vocabulary.shipped({question.shipped!r})"
    else:
        classes = repr(uploads.classes_of(question.words, limits))
    if question.masks == DRAWN:
        masks = [f"    {mask!r}," for mask in uploads.drawn_masks(question.drawn, working)]
        lines += ["masks = [", *masks, "]"]
    masks = {FILE: repr(question.masks_file and question.masks_file.name), DRAWN: "masks",
             REGIONS: "mc.superpixels", GENERATOR: "model.generator"}[question.masks]
    more = f", distractors={uploads.classes_of(question.distractors, limits)!r}" if (
        question.distractors.strip()) else ""
    more += f", minimum_score={question.minimum_score:g}" if question.minimum_score else ""
    lines += [f"result = model.name({picture}, {masks}, {classes}{more})",
              "print(result)", "result.save(\"named\", \"picture\")"]
    return "\n".join([*imports, "", *lines, ""])
