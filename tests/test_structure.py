"""The order of the wings, the few rules of style that a tool can see, and that all texts name only
commands, flags and configurations that exist."""

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest

from maskclippp_jax import configs
from maskclippp_jax.commands import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = sorted(f for pattern in ("*.md", "docs/*.md", "launch/**/*.sh", "launch/**/*.py",
                                 "configs/**/*.py", "benchmarks/*.py", "notebooks/*.ipynb",
                                 "maskclippp_jax/**/*.py")
               for f in ROOT.glob(pattern))


def run(*line):
    done = subprocess.run([sys.executable, "-m", *line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wings_import_only_from_those_below():
    program = "import sys; from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run([sys.executable, "-c", program, "--no-cache"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_the_order_of_wings_is_looked_at(tmp_path):
    """A wing that imports from one above it is found."""
    for name in ("maskclippp_jax/metrics", "maskclippp_jax/models"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "maskclippp_jax/__init__.py").touch()
    (tmp_path / "maskclippp_jax/metrics/wrong.py").write_text("from maskclippp_jax import models\n")
    text = (ROOT / "pyproject.toml").read_text()
    layers = re.search(r"layers = \[.*?\]", text, re.S)[0]
    (tmp_path / "pyproject.toml").write_text(text.replace(
        layers, 'layers = ["models", "metrics"]'))
    program = "import sys; from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run([sys.executable, "-c", program, "--no-cache"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 1 and "0 kept, 1 broken" in done.stdout, done.stdout + done.stderr


def test_ruff_finds_nothing():
    run("ruff", "check", "--no-cache", ".")


def test_every_command_is_listed_and_tells_its_flags():
    files = {f.stem for f in (ROOT / "maskclippp_jax/commands").glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS)
    readme = (ROOT / "README.md").read_text()
    for name in files:
        assert re.search(rf"^\| `{name} ", readme, re.M), f"the README does not list {name}"


def test_texts_name_only_commands_flags_and_configurations_that_exist():
    known, problems, found = {name: _flags_of(name) for name in COMMANDS}, [], 0
    for file in TEXTS:
        text = _text_of(file).replace("\\\n", " ").replace('"\n', " ")
        where = file.relative_to(ROOT)
        if re.search(r"-m maskclippp_jax\.[a-z]", text):
            problems.append(f"{where}: a command of old")
        for command, rest in re.findall(
                r"(?<![\w./-])(?<!import )maskclippp ([a-z_]+)([^`\n]*)", text):
            found += 1
            if command not in COMMANDS:
                problems.append(f"{where}: maskclippp {command}")
                continue
            for flag in re.findall(r"(?<![\w-])--([a-z_]+)", rest):
                if flag not in known[command]:
                    problems.append(f"{where}: maskclippp {command} --{flag}")
        for name in re.findall(r"--config=([\w/]+?)(?=[:\s`\"',;)]|$)", text):
            if name not in (*configs.names(), "NAME", "P", "FILE") and not name.endswith("/x"):
                problems.append(f"{where}: --config={name}")
    assert not problems
    assert found > 60


@pytest.mark.parametrize("words, code, says", [
    (["--help"], 0, "evaluate"), ([], 2, "usage: maskclippp COMMAND"),
    (["--version"], 0, "maskclippp_jax "), (["train", "--help"], 0, "--workdir=..."),
    (["names", "--help"], 0, "names [NAME] ["), (["weights", "--help"], 0, "weights [NAME...] ["),
    (["predict", "x.jpg", "-h"], 0, "usage: maskclippp predict PICTURE"),
    (["trian"], 2, "there is no command trian; did you mean train?"),
    (["train", "--wrkdir=x"], 2, "there is no flag --wrkdir; did you mean --workdir?"),
    (["train", "--config=quickstrat"], 2, "did you mean quickstart?"),
    (["train", "--config=configs/nothing.py"], 2, "no configuration configs/nothing.py"),
    (["train", "more"], 2, "got the argument 'more', wanted flags only"),
    (["train", "--config.train.stps=3", "--config", "quickstart"], 2, "has no key stps"),
    (["train", "--workdir"], 2, "workdir"),
])
def test_the_command_line_answers(words, code, says):
    done = subprocess.run([sys.executable, "-m", "maskclippp_jax", *words], capture_output=True,
                          text=True)
    assert done.returncode == code and says in done.stdout + done.stderr, done
    assert "Traceback" not in done.stderr
    assert done.stderr == "" or code == 2


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words):
    program = ("import sys\nfrom maskclippp_jax.__main__ import main\n"
               f"sys.argv = ['maskclippp', *{words}]\nassert main() == 0\n"
               "print([m for m in ('jax', 'numpy', 'cv2', 'rich', 'etils') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_help_keep_their_lines(name):
    text = (ROOT / f"maskclippp_jax/commands/{name}.py").read_text()
    assert max(map(len, ast.get_docstring(ast.parse(text)).splitlines())) <= 100


def test_an_own_configuration_that_imports_from_the_old_place_is_told(tmp_path):
    (tmp_path / "own.py").write_text("from configs import quickstart\n")
    done = subprocess.run([sys.executable, "-m", "maskclippp_jax", "train", "--config=own.py"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "from maskclippp_jax.configs" in done.stderr, done.stderr


def _text_of(file: pathlib.Path) -> str:
    text = file.read_text()
    if file.suffix == ".ipynb":  # what is typed, not what it shows
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def _flags_of(command: str) -> set[str]:
    text = (ROOT / f"maskclippp_jax/commands/{command}.py").read_text()
    found = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text)) | {"help", "debug"}
    for flag in ("config", "distributed", "nothing", "max_pixels"):
        if f"cli.define_{flag}" in text:
            found.add(flag)
    return found
