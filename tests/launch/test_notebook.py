"""The notebook runs from its first cell to the last, with the models that are shipped."""

import os
import pathlib
import re
import subprocess
import sys

import nbformat

from tests import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
STORED = ROOT / "notebooks/start.ipynb"


def text_of(cell):
    """What a cell printed, as people see it."""
    return "".join(o.text if o.output_type == "stream" else o.data.get("text/plain", "")
                   for o in cell.outputs)


def test_the_notebook_runs_in_an_empty_folder_and_shows_what_it_tells(tmp_path):
    environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=xla_flags.devices(1),
                       PYTHONPATH=str(ROOT), HOME=str(tmp_path))
    done = subprocess.run([sys.executable, ROOT / "launch/notebook.py", tmp_path / "run.ipynb"],
                          env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [c for c in nbformat.read(tmp_path / "run.ipynb", 4).cells if c.cell_type == "code"]
    stored = [c for c in nbformat.read(STORED, 4).cells if c.cell_type == "code"]
    assert [c.source for c in cells] == [c.source for c in stored]
    for cell, as_stored in zip(cells, stored):  # it shows what the stored one does
        assert [sorted(o.get("data", {})) for o in cell.outputs if o.output_type != "stream"] == [
            sorted(o.get("data", {})) for o in as_stored.outputs if o.output_type != "stream"]
    said = "\n".join(map(text_of, cells))
    assert "step 100/100" in said and "Traceback" not in said
    before, after = map(int, re.search(r"untuned (\d+)%, tuned (\d+)%", said).groups())
    assert after > before + 3
    assert float(re.search(r"largest difference: (\S+)", said)[1]) < 1e-5


def test_the_stored_notebook_is_small_and_has_been_run():
    assert STORED.stat().st_size < 300_000
    cells = [c for c in nbformat.read(STORED, 4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert all(o.output_type != "error" for c in cells for o in c.outputs)
    assert not re.search(r"/(home|work|root|tmp|Users)/", STORED.read_text())
