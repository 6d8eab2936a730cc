"""What `plan` compiles is what `train` and `evaluate` run: the programs' texts are the same."""

import hashlib
import importlib.util
import re

import jax
import pytest

from maskclippp_jax.data.bundles import Bundle
from maskclippp_jax.evaluation import passes
from maskclippp_jax.naming import segmenter
from maskclippp_jax.runtime import sharding
from maskclippp_jax.training import compiled_step, loop, train_step
from tests import whole_runs
from tests.evaluation.test_evaluate import (  # noqa: F401, fixtures
    config,
    mesh,
    model,
    place,
    truth,
)


class Lowered(Exception):
    """Ends a run before anything is compiled; its argument is the program's text."""


def functions_of(program: str) -> list[str]:
    """The different functions of a program, those that a function calls before it, each with
    digests of these for their names: what a process has traced before moves JAX's numbers, and may
    make two equal functions of one."""
    bodies = {re.search(r"@(\w+)", part)[1]: part.rstrip(" }\n")
              for part in re.split(r"(?m)^  (?=func\.func)", program)[1:]}
    texts = {}

    def text_of(name: str) -> str:
        if name not in texts:
            texts[name] = re.sub(r"call @(\w+)", lambda m: "call @" + digest(text_of(m[1])),
                                 bodies[name]).replace(f"@{name}(", "@(", 1)
        return texts[name]

    text_of("main")
    assert sorted(texts) == sorted(bodies)
    return list(dict.fromkeys(texts.values()))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_programs_differ_by_operations_and_not_by_what_was_traced_before():
    def program(operation, inner):
        def run(x):
            return inner(operation)(x) * inner(operation)(x[::-1])

        return jax.jit(run).lower(jax.numpy.ones(3)).as_text()

    def twofold(operation):
        def traced_again(x):
            return operation(x)

        return jax.jit(traced_again)

    once, twice = program(jax.numpy.sin, jax.jit), program(jax.numpy.sin, twofold)
    assert once.count("func.func private") < twice.count("func.func private")
    assert functions_of(once) == functions_of(twice)
    assert functions_of(once) != functions_of(program(jax.numpy.cos, jax.jit))


@pytest.mark.parametrize("tuned_text", ["none", "all"])
def test_training_runs_the_program_that_plan_compiles(tmp_path, monkeypatch, tuned_text):
    folder = whole_runs.make_place(tmp_path)
    spec = importlib.util.spec_from_file_location("tiny", folder / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    experiment = tiny.get_config().unlock()
    experiment.data_dir, experiment.tune.text = str(folder / "data"), tuned_text

    make = train_step.make_step

    class Step:
        def __init__(self, *arguments):
            self.step = make(*arguments)

        def lower(self, *arguments):
            raise Lowered(self.step.lower(*arguments).as_text())

    with monkeypatch.context() as patch:
        patch.setattr(train_step, "make_step", Step)
        with pytest.raises(Lowered) as trained:
            loop.tune(experiment.lock(), str(folder / "run"))
    mesh = sharding.make_mesh(experiment.mesh.fsdp)  # noqa: F811
    planned = compiled_step.lower_training(experiment, mesh, experiment.train.batch_size)
    assert functions_of(planned.as_text()) == functions_of(trained.value.args[0])


def test_evaluation_runs_the_program_that_plan_compiles(
        place, config, model, truth, mesh, monkeypatch):  # noqa: F811
    make = segmenter.make_segmenter.__wrapped__

    def recorded(*arguments, **settings):
        # An evaluation runs its parts one by one, `plan` compiles all of them as one.
        run = jax.jit(make(*arguments, **settings), static_argnames=("canvas", "output_canvas"))

        def lower(*inputs, **canvases):
            raise Lowered(run.lower(*inputs, **canvases).as_text())

        return lower

    with monkeypatch.context() as patch, jax.set_mesh(mesh):
        patch.setattr(segmenter, "make_segmenter", recorded)
        with pytest.raises(Lowered) as evaluated:
            next(passes.name_bundle(config, model, truth, ("semantic", "panoptic", "instances"),
                                    mesh, [0, 2], Bundle(place / "open")))
    planned = compiled_step.lower_evaluation(config, mesh, config.eval.batch_size, (40, 56), 5)
    assert functions_of(planned.as_text()) == functions_of(evaluated.value.args[0])
