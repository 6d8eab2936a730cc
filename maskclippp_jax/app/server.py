"""Serves the page: to this machine unless a host is named, without anything from the web."""

import importlib.util
import os
import pathlib
import signal
import socket
import sys
import tempfile
import typing

if typing.TYPE_CHECKING:
    from maskclippp_jax import api
    from maskclippp_jax.app.uploads import Limits

_BODY = 8 * 2**20  # bytes of a request that is no upload
_STOPPING = 2      # seconds that open connections get at the end


def listen(host: str, port: int) -> socket.socket:
    """A socket that the page can be served at; at once, before anything slow is loaded.

    Raises:
      ValueError: somebody else has the port, or there is no such host.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except PermissionError:
        raise ValueError(f"port {port} is not open to users like you; give one from 1024 on, such "
                         "as --port=7860") from None
    except socket.gaierror as error:
        raise ValueError(f"there is no host {host} ({error.strerror}); give --host=127.0.0.1 for "
                         "this machine alone, --host=0.0.0.0 for all that can reach it") from None
    except OSError as error:
        raise ValueError(f"cannot serve at {host}:{port} ({error.strerror}); is another page "
                         f"there? Give another port, such as --port={port + 1}") from None
    return found


def require_gradio() -> None:
    """Raises ValueError if the packages of the page are not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs Gradio, which is not installed; pip install "
                         "'maskclippp_jax[app]'")


def serve(model: "api.Model", loading: str, limits: "Limits", at: socket.socket,
          ready: typing.Callable[[str], None]) -> None:
    """Serves the page until SIGINT or SIGTERM.

    Args:
      model: what names.
      loading: the line of Python that loads it.
      limits: of requests.
      at: where, see `listen`.
      ready: is told the page's address once it answers.
    """
    with tempfile.TemporaryDirectory(prefix="maskclippp_page_") as folder:
        # Gradio keeps uploads there, and serves files of this folder only. By itself it takes one
        # that all users of the machine share.
        os.environ["GRADIO_TEMP_DIR"] = folder
        import uvicorn

        app = make_app(model, loading, limits, folder)
        host, port = at.getsockname()[:2]
        server = uvicorn.Server(uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=_STOPPING))
        address = f"[{host}]" if ":" in host else host
        started = server.startup

        async def startup(sockets=None):
            await started(sockets=sockets)
            ready(f"http://{address}:{port}/")

        server.startup = startup
        # Which the server raises once more when all is closed; the folder is to be removed then.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        server.run(sockets=[at])


def make_app(model: "api.Model", loading: str, limits: "Limits", folder: str):
    """The page as an ASGI application; files of examples are made in `folder`."""
    import fastapi
    import gradio as gr

    from maskclippp_jax.app import page

    blocks = page.build(model, loading, limits, _examples(model, pathlib.Path(folder)))
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app, blocks, "/", footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, allowed_paths=[], show_error=False,
        max_file_size=limits.num_bytes, theme=_theme(gr),
        head=f"<style>{page.text_of('page.css')}</style>")  # `css` reaches only what is inside
    blocks.has_launched = True  # else Gradio does not look at where files are from
    app.add_middleware(_Bounded)
    return app


def _theme(gr):
    """Plain labels and the system's fonts; Gradio's own come from the web."""
    return gr.themes.Soft(
        primary_hue="blue", neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"]).set(
            body_background_fill="*neutral_50",
            block_label_background_fill="*block_background_fill",
            block_label_background_fill_dark="*block_background_fill",
            block_label_text_color="*neutral_600", block_label_text_color_dark="*neutral_200",
            block_title_background_fill="transparent",
            block_title_background_fill_dark="transparent", block_title_padding="0",
            block_title_text_color="*neutral_700", block_title_text_color_dark="*neutral_200",
            block_title_text_weight="600")


class _Bounded:
    """Refuses requests that are no uploads and too long for a question."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"].endswith("/upload"):
            return await self.app(scope, receive, send)
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said) > _BODY:
            await send(dict(type="http.response.start", status=413,
                            headers=[(b"content-type", b"text/plain")]))
            return await send(dict(type="http.response.body",
                                   body=b"this request is too long; ask for less at once"))
        taken = 0

        async def bounded():
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > _BODY:
                raise ValueError("a request is longer than it said")
            return message

        await self.app(scope, bounded, send)


def _examples(model: "api.Model", folder: pathlib.Path) -> dict[str, str]:
    """Pictures (paths) with words: photographs that scikit-image carries, and for the small model,
    which knows the words of scenes only, two of these."""
    import numpy as np
    from PIL import Image
    from skimage import data

    from maskclippp_jax.data import scenes

    found = []
    if model.config.eval.dataset == "scenes":
        for seed in (5, 11):
            scene = scenes.draw_scene(np.random.default_rng(seed), digits="test")
            others = [n for n in scenes.CLASSES[::7] if n not in scene.names]
            found.append((f"scene {seed}", scene.image, "; ".join([*scene.names, *others])))
    found += [("cat", data.chelsea(), "cat; blanket; eye; nose"),
              ("coffee", data.coffee(), "cup; coffee; spoon; saucer; table")]
    for name, pixels, _ in found:
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {str(folder / f"{name}.png"): words for name, _, words in found}
