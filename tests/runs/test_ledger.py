"""Where the time of a run went: all of it is somewhere, also when starts were killed."""

import json
import time

import pytest
from etils import epath

from maskclippp_jax.runs import ledger


def line(start, until, from_step, step, *, steps=20, **seconds):
    spent = dict.fromkeys(ledger.KINDS, 0.0) | seconds
    spent["stepping"] = until - start - sum(spent.values())
    return ledger.Line(start=start, until=until, from_step=from_step, step=step, steps=steps,
                       seconds=spent)


def test_what_was_done_again_and_the_time_between_starts_are_lost():
    lines = [
        line(0, 10, 0, 0, starting=10), line(0, 30, 0, 4, starting=10, saving=2),
        line(0, 50, 0, 8, starting=10, saving=4), line(0, 60, 0, 10, starting=10, saving=4),
        # Killed at 63, started again at 100 from the checkpoint of step 8; killed at once.
        line(100, 105, 8, 8, starting=5),
        # The newest checkpoint was damaged: from step 4, so that its second half is done again.
        line(200, 207, 4, 4, starting=7), line(200, 260, 4, 12, starting=7, validating=3)]
    total = ledger.summary(lines)
    assert total == dict(starting=17, compiling=0, saving=2, validating=3, stepping=68,
                         lost=170) | {"waiting for data": 0}
    assert sum(total.values()) == 260
    assert ledger.sentence(lines) == (
        "0:04:20 in 3 starts: 65 % lost, 26 % stepping, 7 % starting, 1 % validating, 1 % saving")


@pytest.mark.parametrize("from_step, lost", [(10, 0), (8, 905)])
def test_a_run_that_lay_finished_lost_nothing(from_step, lost):
    """Unless its last checkpoint is gone: then its end is done again."""
    lines = [line(0, 95, 0, 8, steps=10), line(0, 100, 0, 10, steps=10),
             line(1000, 1005, from_step, from_step), line(1000, 1050, from_step, 15)]
    total = ledger.summary(lines)
    assert total["lost"] == lost
    assert sum(total.values()) == (1050 if lost else 150)


def test_a_start_counts_all_its_seconds_once(tmp_path):
    times = ledger.Ledger()
    time.sleep(0.02)
    times.started()
    with pytest.raises(OSError), times.spending("compiling"):
        raise OSError
    found = times.line(3, 5, 9)
    assert found["until"] - found["start"] == pytest.approx(
        sum(found["seconds"].values()), abs=1e-5)  # a float of seconds since 1970
    assert found["seconds"]["starting"] >= 0.02 and (found["from_step"], found["step"]) == (3, 5)
    file = epath.Path(tmp_path / ledger.FILE)
    assert ledger.read(file) == []
    file.write_text(json.dumps(found) + "\n" + json.dumps(found)[:30])  # killed while it wrote
    assert ledger.read(file) == [found]
