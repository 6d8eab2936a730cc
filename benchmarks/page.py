"""How long the page's answers take: the first look at a picture, and other words for it.

    python benchmarks/page.py [--words=150] [--checkpoint=untuned] [--config=quickstart] \
        [--generator=quickstart]

Without a browser: what the server does between a question and what it sends. Programs are compiled
before; words are new each time, so that their embedding counts. The time of all cores together
stands beside that of the clock, for a machine that does other things as well.
"""

import pathlib
import statistics
import tempfile
import time

from absl import app, flags

WORDS = flags.DEFINE_integer("words", 150, "names in a vocabulary")
REPEATS = flags.DEFINE_integer("repeats", 7, "of each measurement")
CHECKPOINT = flags.DEFINE_string("checkpoint", "untuned", "as of `serve`")
CONFIG = flags.DEFINE_string("config", "quickstart", "as of `serve`")
GENERATOR = flags.DEFINE_string("generator", "quickstart", "as of `serve`")


def main(_):
    from PIL import Image
    from skimage import data

    import maskclippp_jax as mc
    from maskclippp_jax.app import session, uploads, views

    limits, loading = uploads.Limits(), "mc.load(...)"
    model = mc.load(CHECKPOINT.value, CONFIG.value, generator=GENERATOR.value,
                    keep_embeddings=False)
    with tempfile.TemporaryDirectory() as folder:
        pictures = []
        for number in range(REPEATS.value + 1):  # others each time, of one size
            path = str(pathlib.Path(folder) / f"{number}.png")
            Image.fromarray(data.coffee()[:, number:560 + number]).save(path)
            pictures.append(uploads.Upload(path, "photo.png"))
        times = {"a new picture": [], "other words": []}
        visit = None
        for number, picture in enumerate(pictures):
            for what in times:
                words = "; ".join(f"word {number} {len(what)} {k}" for k in range(WORDS.value))
                start, work = time.perf_counter(), time.process_time()
                question = session.Question(picture, words)
                visit = session.answer(model, loading, question, visit or session.Session(),
                                       limits)
                views.view(visit.result, visit.notes)
                times[what].append((time.perf_counter() - start, time.process_time() - work))
    for what, pairs in times.items():
        seconds, work = (sorted(column) for column in zip(*pairs[1:]))  # the first one compiles
        print(f"{what}, {WORDS.value} words: {statistics.median(seconds):.3f} s "
              f"({seconds[0]:.3f} ... {seconds[-1]:.3f}), {statistics.median(work):.3f} s of CPU")


if __name__ == "__main__":
    app.run(main)
