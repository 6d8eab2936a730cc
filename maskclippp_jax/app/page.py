"""The page itself: what stands where, and what happens when (Gradio)."""

import functools
import html
import importlib.resources
import pathlib
import typing
from unittest import mock

import gradio as gr
from gradio import processing_utils, utils

from maskclippp_jax import api
from maskclippp_jax.app import downloads, session as sessions, uploads, views
from maskclippp_jax.app.session import DRAWN, FILE, GENERATOR, REGIONS, Question, Session
from maskclippp_jax.app.uploads import Limits, Upload
from maskclippp_jax.vocabulary import Vocabulary, shipped_names
from maskclippp_jax.weights import released

_OWN = "my own words"
_LONGEST = 500  # letters of a sentence
_NAME = 100     # letters of a file's name
_DOWNLOADS = (("overlay", "Overlay (PNG)"), ("labels", "Label map (PNG)"), ("coco", "COCO (JSON)"),
              ("code", "Python"))
# After `_write`, with the file it made: the browser fetches it.
_FETCH = """(file) => {
  const link = document.createElement("a");
  link.href = file.url; link.download = file.orig_name; link.click();
}"""


class _Kept:
    """Takes files from Gradio's folder of uploads only. Gradio itself looks at that as well, but by
    default copies any path of the server, and addresses in the web, into it where it is a part of
    another application."""

    async def async_move_resource_to_block_cache(self, place):
        if place is not None and not utils.is_in_or_equal(place, utils.get_upload_folder()):
            raise _sentence(f"{_plain_name(str(place))} was not uploaded here")
        return await super().async_move_resource_to_block_cache(place)


class _Read(_Kept):
    """Leaves reading to `uploads`, within limits and with its own sentences."""

    def preprocess(self, payload):
        return payload and Upload(payload.path, _plain_name(payload.orig_name or payload.path))


# Gradio would write a stub beside this file for each class.
with mock.patch("gradio.component_meta.create_or_modify_pyi", create=True):
    class _PictureInput(_Read, gr.Image):
        def get_block_name(self):
            return "image"

    class _FileInput(_Read, gr.File):
        def get_block_name(self):
            return "file"

    class _Editor(_Kept, gr.ImageEditor):
        def get_block_name(self):
            return "imageeditor"


def build(model: api.Model, loading: str, limits: Limits, examples: typing.Mapping[str, str]
          ) -> gr.Blocks:
    """The page of a model.

    Args:
      model: what names.
      loading: the line of Python that loads it.
      limits: of requests.
      examples: words for each path of a picture.
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
                shipped = gr.Dropdown(
                    _vocabularies(), value="", label="or a vocabulary (type to search)",
                    filterable=True, elem_id="vocabulary")
                masks = gr.Radio(_mask_choices(model), value=_mask_choices(model)[0][1],
                                 label="Masks", elem_id="masks")
                masks_file = _FileInput(label="Label map (PNG), COCO's JSON, .npy, .npz",
                                        visible=False, height=120, elem_id="masks_file",
                                        file_types=[".png", ".tif", ".tiff", ".json", ".npy",
                                                    ".npz"])
                editor = _Editor(
                    type="numpy", visible=False, sources=(), transforms=(), layers=False,
                    label="A colour is a mask",
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
                shown = gr.Examples([[path] for path in examples], picture, label="Examples",
                                    elem_id="examples", api_visibility="private")
            with gr.Column(scale=7, min_width=320):
                viewer = gr.HTML(None, html_template=text_of("viewer.html"), elem_id="viewer",
                                 apply_default_css=False,
                                 css_template=text_of("viewer.css"),
                                 js_on_load=text_of("viewer.js"))
                with gr.Row(visible=False, elem_classes="mc-downloads") as downloads:
                    buttons = [gr.Button(label, size="sm", elem_id=f"download-{kind}", min_width=60)
                               for kind, label in _DOWNLOADS]
                made = gr.File(visible="hidden", elem_id="made")

        def ask(*given):
            *given, visit = given
            question = _question(*given)
            try:
                visit = sessions.answer(model, loading, question, visit or Session(), limits)
            except ValueError as error:
                raise _sentence(error) from None
            return visit, views.view(visit.result, visit.notes), gr.Row(visible=True)

        def write(kind, visit):
            if visit is None:
                raise _sentence("there is no answer yet")
            return _write(kind, visit)

        # One at a time, as the device does; a bounded number waits.
        heavy = dict(concurrency_id="model", concurrency_limit=1, api_visibility="private")
        light = dict(queue=False, show_progress="hidden", api_visibility="private")
        asking = dict(
            fn=ask, inputs=[picture, words, shipped, names_file, masks, masks_file, editor,
                            distractors, minimum, session],
            outputs=[session, viewer, downloads], show_progress="minimal", show_progress_on=viewer,
            **heavy)
        gr.on([go.click, words.submit, shipped.input], **asking)
        by_name = {pathlib.Path(path).name: text for path, text in examples.items()}
        shown.load_input_event.then(lambda picture: (by_name.get(picture.name, ""), ""), picture,
                                    [words, shipped], **light).then(**asking)
        for (kind, _), button in zip(_DOWNLOADS, buttons):
            done = button.click(functools.partial(write, kind), session, made, **heavy)
            done.success(None, made, js=_FETCH, **light)
        # What is typed then searches, in place of adding to what was chosen.
        shipped.focus(None, js="() => document.querySelector('#vocabulary input').select()",
                      **light)
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
        return _Editor(visible=kind == DRAWN)
    try:
        pixels = views.shown(uploads.read_picture(picture, limits))
    except ValueError as error:
        raise _sentence(error) from None
    return _Editor(dict(background=pixels, layers=[], composite=None), visible=True)


def _write(kind: str, visit: Session) -> str:
    """Makes a file of an answer, where Gradio serves it from; its path."""
    ending, content = downloads.content_of(kind, visit)
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
    """What was loaded, without folders of the server."""
    found = f"; masks are of {model.generator.title}" if model.generator else ""
    return released.without_folders(f"{model.title}{found}")


def _sentence(error: Exception | str) -> gr.Error:
    """What people read; Gradio shows HTML, and a name of a file or a word may look like it."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST // 2]} ... {text[-_LONGEST // 2:]}"
    return gr.Error(html.escape(text), print_exception=False, title="This cannot be used",
                    duration=15)


def _plain_name(name: str) -> str:
    return pathlib.PurePosixPath(name.replace("\\", "/")).name[-_NAME:] or "file"


def text_of(name: str) -> str:
    """A file of this folder."""
    return importlib.resources.files("maskclippp_jax.app").joinpath(name).read_text("utf-8")
