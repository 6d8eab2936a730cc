"""The page itself: what stands where, and what happens when (Gradio)."""

import html
import importlib.resources
import json
import pathlib
import typing

import gradio as gr
from gradio import processing_utils, utils

from maskclippp_jax import api
from maskclippp_jax.app import session as sessions, uploads, views
from maskclippp_jax.app.session import DRAWN, FILE, GENERATOR, REGIONS, Question, Session
from maskclippp_jax.app.uploads import Limits, Upload
from maskclippp_jax.data import annotation_files, label_maps
from maskclippp_jax.drawing import visualize
from maskclippp_jax.vocabulary import Vocabulary, shipped_names

_OWN = "my own words"
_LONGEST = 500  # letters of a sentence
_NAME = 100     # letters of a file's name
_EDITOR = 1024  # pixels of the longer side that is drawn on
_DOWNLOADS = (("overlay", "Overlay (PNG)"), ("labels", "Label map (PNG)"), ("coco", "COCO (JSON)"),
              ("code", "Python"))
# After `_write`, with the file it made: the browser fetches it.
_FETCH = """(file) => {
  const link = document.createElement("a");
  link.href = file.url; link.download = file.orig_name; link.click();
}"""

from gradio.events import Dependency

class _PictureInput(gr.Image):
    """Gradio's picture that leaves reading to `uploads`, within limits and with its own sentences."""

    def get_block_name(self):
        return "image"

    def preprocess(self, payload):
        return payload and Upload(payload.path, _plain_name(payload.orig_name or payload.path))
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class _FileInput(gr.File):
    """Gradio's file, with the name its owner knows."""

    def get_block_name(self):
        return "file"

    def preprocess(self, payload):
        return payload and Upload(payload.path, _plain_name(payload.orig_name or payload.path))
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


def build(model: api.Model, loading: str, limits: Limits, examples: typing.Sequence[tuple[str, str]]
          ) -> gr.Blocks:
    """The page of a model.

    Args:
      model: what names.
      loading: the line of Python that loads it.
      limits: of requests.
      examples: paths of pictures, with words for each.
    """
    page = gr.Blocks(analytics_enabled=False, title="maskclippp", fill_width=True,
                     delete_cache=(3600, 3600))
    with page:
        session = gr.State(None)
        gr.HTML(f"<h1>Name any segment</h1><p>{html.escape(_title_of(model))}</p>",
                elem_classes="mc-head")
        with gr.Row(elem_classes="mc-page"):
            with gr.Column(scale=5, min_width=320):
                picture = _PictureInput(type="filepath", label="Picture", height=300,
                                        sources=["upload", "clipboard", "webcam"],
                                        buttons=[], elem_id="picture")
                words = gr.Textbox(label="Words", lines=2, max_lines=8, elem_id="words",
                                   placeholder="cat; dog, puppy; grass",
                                   info="Classes apart by ; and synonyms by ,")
                shipped = gr.Dropdown(_vocabularies(), value="", label="or a vocabulary",
                                      filterable=True, elem_id="vocabulary")
                masks = gr.Radio(_mask_choices(model), value=_mask_choices(model)[0][1],
                                 label="Masks", elem_id="masks")
                masks_file = _FileInput(label="Label map (PNG), COCO's JSON, .npy, .npz",
                                        visible=False, height=120, elem_id="masks_file",
                                        file_types=[".png", ".tif", ".tiff", ".json", ".npy",
                                                    ".npz"])
                editor = gr.ImageEditor(
                    type="numpy", visible=False, sources=(), transforms=(), layers=False,
                    label="Paint over each object, every one in a colour of its own",
                    brush=gr.Brush(default_size=24, colors=list(uploads.BRUSH),
                                   default_color=uploads.BRUSH[0], color_mode="fixed"),
                    format="png", buttons=[], elem_id="editor")
                with gr.Accordion("More", open=False):
                    names_file = _FileInput(label="A names file in place of words (one class a "
                                            "line)", file_types=[".txt"], height=110,
                                            elem_id="names_file")
                    distractors = gr.Textbox(label="Distractors", placeholder="other; background",
                                             info="Masks that fit these best get no name")
                    minimum = gr.Slider(0, 1, 0, step=0.01, label="Least score of a name")
                go = gr.Button("Name the segments", variant="primary", elem_id="go")
                if examples:
                    gr.Examples([list(e) for e in examples], [picture, words], label="Examples",
                                elem_id="examples", api_visibility="private")
            with gr.Column(scale=7, min_width=320):
                viewer = gr.HTML(None, html_template=_text("viewer.html"), elem_id="viewer",
                                 css_template=_text("viewer.css"), js_on_load=_text("viewer.js"))
                with gr.Row(visible=False, elem_classes="mc-downloads") as downloads:
                    buttons = [gr.Button(label, size="sm", elem_id=f"download-{kind}", min_width=90)
                               for kind, label in _DOWNLOADS]
                made = gr.File(visible="hidden", elem_id="made")

        def ask(*given):
            *given, visit = given
            question = _question(*given)
            try:
                visit = sessions.answer(model, loading, question, visit or Session(), limits)
            except (ValueError, FileNotFoundError, OSError) as error:
                raise _sentence(error) from None
            return visit, views.view(visit.result, visit.notes), gr.Row(visible=True)

        def write(kind, visit):
            if visit is None:
                raise _sentence("there is no answer yet")
            return _write(kind, visit)

        # One at a time, as the device does; a bounded number waits.
        heavy = dict(concurrency_id="model", concurrency_limit=1, api_visibility="private")
        light = dict(queue=False, show_progress="hidden", api_visibility="private")
        gr.on([go.click, words.submit, shipped.input], ask,
              [picture, words, shipped, names_file, masks, masks_file, editor, distractors, minimum,
               session], [session, viewer, downloads], show_progress="minimal",
              show_progress_on=viewer, **heavy)
        for (kind, _), button in zip(_DOWNLOADS, buttons):
            button.click(lambda visit, kind=kind: write(kind, visit), session, made, **heavy).success(
                None, made, js=_FETCH, **light)
        shipped.change(lambda name: gr.Textbox(interactive=not name), shipped, words, **light)
        gr.on([masks.change, picture.change], lambda kind, picture: (
            gr.File(visible=kind == FILE), _canvas(kind, picture, limits)),
            [masks, picture], [masks_file, editor], **light)
    page.queue(max_size=limits.waiting, default_concurrency_limit=1)
    page.state_session_capacity = limits.sessions
    return page


def _question(picture, words, shipped, names_file, masks, masks_file, editor, distractors, minimum
              ) -> Question:
    return Question(picture, words or "", shipped or "", names_file, masks, masks_file,
                    tuple(editor["layers"]) if editor else (), distractors or "", float(minimum))


def _canvas(kind: str, picture: Upload | None, limits: Limits):
    """The editor, with the picture under what is drawn."""
    if kind != DRAWN or picture is None:
        return gr.ImageEditor(visible=kind == DRAWN)
    try:
        pixels = uploads.scaled(uploads.read_picture(picture, limits),
                                limits._replace(side=_EDITOR))
    except (ValueError, OSError) as error:
        raise _sentence(error) from None
    return gr.ImageEditor(dict(background=pixels, layers=[], composite=None), visible=True)


def _write(kind: str, visit: Session) -> str:
    """Makes a file of an answer, where Gradio serves it from; its path."""
    result = visit.result
    if kind == "overlay":
        ending, content = "overlay.png", visualize.to_png(result.draw())
    elif kind == "labels":
        ending, content = "labels.png", visualize.label_map_png(label_maps.stored(result.labels))
    elif kind == "coco":
        annotated = result.annotated(visit.stem)._replace(file=f"{visit.stem}.jpg")
        ending, content = "coco.json", json.dumps(
            annotation_files.coco([annotated])).encode()
    else:
        ending, content = "py", visit.code.encode()
    return processing_utils.save_bytes_to_cache(content, f"{visit.stem}.{ending}",
                                                utils.get_upload_folder())


def _vocabularies() -> list[tuple[str, str]]:
    """Shipped ones with the number of their classes, the user's own words first."""
    return [(_OWN, ""), *((f"{name} ({Vocabulary.shipped(name).num_classes} classes)", name)
                          for name in shipped_names())]


def _mask_choices(model: api.Model) -> list[tuple[str, str]]:
    found = [("found by the generator", GENERATOR)] if model.generator else []
    return [*found, ("regions of like colour", REGIONS), ("from a file", FILE), ("drawn", DRAWN)]


def _title_of(model: api.Model) -> str:
    found = f"; masks are of {model.generator.title}" if model.generator else ""
    return f"{model.title}{found}"


def _sentence(error: Exception | str) -> gr.Error:
    """What people read; Gradio shows HTML, and a name of a file or a word may look like it."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST // 2]} ... {text[-_LONGEST // 2:]}"
    return gr.Error(html.escape(text), print_exception=False, title="This cannot be used",
                    duration=15)


def _plain_name(name: str) -> str:
    return pathlib.PurePosixPath(name.replace("\\", "/")).name[-_NAME:] or "file"


def _text(name: str) -> str:
    return importlib.resources.files("maskclippp_jax.app").joinpath(name).read_text("utf-8")