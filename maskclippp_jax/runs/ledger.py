"""Where the time of a run went: every second that somebody wanted it done, in `times.jsonl`.

Each line is what one start had spent on what when it last reported; its last line that is not
behind the checkpoint the next start went on from counts. What lies between that line and the next
start is lost: steps done again, and the time until somebody started it again. Of a run that was
finished, and is asked for more steps later, nothing is.
"""

import contextlib
import math
import time
import typing

from etils import epath

from maskclippp_jax.runtime import typed

FILE = "times.jsonl"
# What a second can be spent on besides stepping, which is all that is left of a start's time.
KINDS = ("starting", "compiling", "waiting for data", "validating", "saving")


class Line(typing.TypedDict):
    start: float               # of this start, seconds since 1970
    until: float               # when it was written
    from_step: int             # that this start went on from
    step: int                  # the last one that was reported
    steps: typing.NotRequired[int]  # of the whole run, as it was asked for then
    seconds: dict[str, float]  # since the start, for each kind, and "stepping"


class Ledger:
    """Counts what this start spends its time on."""

    def __init__(self):
        """The start begins."""
        self._start, self._begun = time.time(), time.monotonic()
        self._spent = dict.fromkeys(KINDS, 0.0)

    @contextlib.contextmanager
    def spending(self, kind: str):
        """The time in here is of one of `KINDS`."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._spent[kind] += time.monotonic() - begun

    def started(self) -> None:
        """All so far was starting."""
        self._spent["starting"] = time.monotonic() - self._begun

    def line(self, from_step: int, step: int, steps: int) -> Line:
        """What has been spent until now, all of it."""
        whole = time.monotonic() - self._begun
        stepping = max(whole - sum(self._spent.values()), 0.0)
        return Line(start=self._start, until=self._start + whole, from_step=from_step, step=step,
                    steps=steps, seconds=self._spent | dict(stepping=stepping))


def read(file: epath.Path) -> list[Line]:
    """The lines of a file; one that a killed run cut is left out."""
    lines = []
    for text in file.read_bytes().splitlines() if file.exists() else ():
        try:
            lines.append(typed.decode(text, Line, file))
        except ValueError:
            continue
    return lines


def summary(lines: typing.Sequence[Line]) -> dict[str, float]:
    """Seconds of a whole run for each of `KINDS`, "stepping" and "lost"; their sum is the time from
    its first start to its last line, less what it lay finished in between."""
    starts: list[list[Line]] = []
    for line in lines:
        if not starts or starts[-1][0]["start"] != line["start"]:
            starts.append([])
        starts[-1].append(line)
    total = dict.fromkeys((*KINDS, "stepping", "lost"), 0.0)
    for number, own in enumerate(starts):
        later = [lines[0] for lines in starts[number + 1:]]
        saved = min((line["from_step"] for line in later), default=math.inf)
        kept = [line for line in own if line["step"] <= saved]
        for kind, seconds in (kept[-1]["seconds"] if kept else {}).items():
            total[kind] += seconds
        finished = kept and kept[-1]["step"] == kept[-1].get("steps")
        if later and not finished:
            total["lost"] += later[0]["start"] - (kept[-1]["until"] if kept else own[0]["start"])
    return total


def sentence(lines: typing.Sequence[Line]) -> str:
    """The summary for people."""
    total = summary(lines)
    whole = sum(total.values())
    number = len({line["start"] for line in lines})
    shares = [f"{100 * seconds / whole:.0f} % {kind}" for kind, seconds in sorted(
        total.items(), key=lambda item: -item[1]) if seconds >= whole / 200]
    return f"{duration(whole)} in {number} start{'s' * (number > 1)}: {', '.join(shares)}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
