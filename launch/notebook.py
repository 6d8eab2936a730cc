"""Runs notebooks/start.ipynb in an empty folder and stores it anew with what it shows.

    python launch/notebook.py            # in place
    python launch/notebook.py copy.ipynb

Pictures are stored with fewer colours, so that the file stays small. It needs nbclient and
ipykernel, which come with the extra `test`.
"""

import base64
import io
import os
import pathlib
import sys
import sysconfig
import tempfile

import nbformat
from nbclient import NotebookClient
from PIL import Image

SOURCE = pathlib.Path(__file__).parents[1] / "notebooks" / "start.ipynb"
MAX_SECONDS = 1200  # of a cell


def main(target: pathlib.Path = SOURCE):
    notebook = nbformat.read(SOURCE, as_version=4)
    # The commands in it are those of this environment.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    os.environ["COLUMNS"] = "100"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=MAX_SECONDS, kernel_name="python3", startup_timeout=300,
                       coalesce_streams=True, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = output.text.replace(folder, "...")
            elif "image/png" in output.get("data", {}):
                output.data = {"image/png": _with_few_colours(output.data["image/png"])}
    nbformat.write(notebook, target)


def _with_few_colours(png: str) -> str:
    picture, content = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    picture.convert("RGB").quantize(96).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
