r"""Shows a model in the browser: drop a picture, type words, see its segments with their names.

    maskclippp serve --checkpoint=P --generator=eomt-l-640
    maskclippp serve --checkpoint=untuned --config=quickstart --generator=quickstart

Masks are found by `--generator`, read from a file, or drawn by hand. The page answers this machine
alone at http://127.0.0.1:7860/, and others if `--host` says so (0.0.0.0: all that can reach it);
there is no password. Pictures stay on the server for two hours at most, and go when it ends. It
needs `pip install 'maskclippp_jax[app]'`, and nothing from the web.
"""

from absl import flags, logging

from maskclippp_jax.runtime import cli

POSITIONAL, BUCKETS = "", ("checkpoint", "generator")

CONFIG = cli.define_config("the experiment a file belongs to; a run knows its own")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run folder, checkpoint file, 'untuned', or "
                                 "the name of a published MaskCLIP++ (maskclippp-l) or CLIP")
GENERATOR = flags.DEFINE_string("generator", None, "finds the masks: published name, file, folder, "
                                "or hf://owner/name")
HOST = flags.DEFINE_string("host", "127.0.0.1", "who may see the page: an address of this machine")
PORT = flags.DEFINE_integer("port", 7860, "of the page", lower_bound=1, upper_bound=65535)
WAITING = flags.DEFINE_integer("waiting", 16, "requests that may wait; more are told to come back",
                               lower_bound=1)


def main(arguments):
    from maskclippp_jax.app import server

    if not CHECKPOINT.value:
        raise ValueError("got no --checkpoint; see --help")
    server.require_gradio()
    at = server.listen(HOST.value, PORT.value)

    from maskclippp_jax import api  # slow to import; what was typed wrongly is said at once
    from maskclippp_jax.app import uploads

    model = api.load(CHECKPOINT.value, CONFIG.value, generator=GENERATOR.value)
    logging.info("loaded %s", model.title)
    generator = f", generator={GENERATOR.value!r}" if GENERATOR.value else ""
    loading = f"mc.load({CHECKPOINT.value!r}{cli.config_in_python()}{generator})"
    server.serve(model, loading, uploads.Limits(waiting=WAITING.value), at,
                 lambda address: logging.info("the page is at %s (Ctrl-C ends it)", address))
