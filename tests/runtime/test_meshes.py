"""The quick start on one device, on several, and on several processes: the same numbers."""

import json

import pytest

from tests import whole_runs
from tests.whole_runs import metrics, train

CONFIG = '''
from maskclippp_jax.configs import quickstart
def get_config():
    config = quickstart.get_config().unlock()
    config.train.steps = 4
    config.train.batch_size = 8
    config.log_every = 1
    config.eval.batch_size = 8
    return config.lock()
'''


@pytest.mark.slow
def test_the_quick_start_gives_the_same_numbers_on_any_devices(tmp_path):
    whole_runs.make_place(tmp_path)
    (tmp_path / "tiny.py").write_text(CONFIG)
    meshes = {"one": (1, 1), "two": (2, 1), "eight": (8, 4), "two processes": (4, 2)}
    for name, (devices, fsdp) in meshes.items():
        flags = [f"--workdir={tmp_path}/{name}", f"--config.mesh.fsdp={fsdp}"]
        evaluate = [f"--workdir={tmp_path}/of {name}", f"--checkpoint={tmp_path}/one"]
        if name == "two processes":
            for line in (["train", *flags], ["evaluate", *evaluate]):
                both = whole_runs.together(tmp_path, *line, devices=devices)
                said = [process.communicate(timeout=600)[0] for process in both]
                assert [process.returncode for process in both] == [0, 0], said
        else:
            for done in (train(tmp_path, name, *flags[1:], devices=devices),
                         whole_runs.command(tmp_path, "evaluate", *evaluate, devices=devices)):
                assert done.returncode == 0, done.stderr
    whole = metrics(tmp_path, "one")
    results = {name: json.loads((tmp_path / f"of {name}/results.json").read_text())["models"][0]
               for name in meshes}
    for name in meshes:
        apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(metrics(tmp_path, name), whole))
        print(f"{name}: losses differ by {apart:.1e}; "
              f"mask accuracy {results[name]['mask_accuracy']['micro']}")
        assert apart < 2e-6
        results[name].pop("images_per_second")
        assert results[name] == results["one"]
    assert results["one"]["mask_accuracy"]["micro"] > 20
