"""Runs groups of rows in processes of their own, each with a deadline, and turns whatever happens into rows.

A case that ends its process, hangs or breaks the device costs its own row: the next process goes on after it. Imports no
torch, so that nothing which a GPU's libraries do can end this process.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.environment import ROOT
from benchmarks.gpu.cases import Device, Group
from benchmarks.records import Row

WORKER: Final = ("-m", "benchmarks.gpu.worker")
START: Final = 120.0  # seconds for a process to import its libraries and say which cases it has
GRACE: Final = 1.0  # seconds for a hung process to write where it stands
LONGEST: Final = 200  # characters of a log's line in a row
NOT_REACHED: Final = "not reached within the"  # begins what such a row says


class Attempt(NamedTuple):
    """How every process is started."""

    device: Device
    out: Path
    worker: Sequence[str] = WORKER  # arguments of Python; tests name a worker with planted faults


class Event(NamedTuple):
    """What one process said, or how it ended: `kind` is "ended" or "late" then."""

    kind: str
    said: dict[str, Any]


def _python_path() -> str:
    """PYTHONPATH of a worker: this repository, and its kernels where they are not installed."""
    ours = [str(ROOT)] + ([] if find_spec("fastmpl_kernels") else [str(ROOT / "kernels")])
    return os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def _process(group: Group, first: int, attempt: Attempt, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A worker and the descriptor of what it says; it and all that it started have ended after the block."""
    reading, writing = os.pipe()
    command = [
        *(sys.executable, *attempt.worker, "--group", group.name, "--device", attempt.device),
        *("--out", str(attempt.out), "--first", str(first), "--report", str(writing)),
    ]
    environment = {**os.environ, "PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    try:
        yield process, reading
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # stuck in the driver: the next group may still run
            process.wait(10)


class _Listener:
    """Reads the lines of one process until a deadline."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(descriptor, selectors.EVENT_READ)

    def next(self, until: float) -> Event:
        """The next line; "ended" where the process closed its end, "late" where `until` (time.monotonic) has come."""
        while b"\n" not in self._rest:
            if not self._selector.select(max(until - time.monotonic(), 0)):
                return Event("late", {})
            found = os.read(self._descriptor, 1 << 16)
            if not found:
                return Event("ended", {})
            self._rest += found
        line, _, self._rest = self._rest.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return Event(said["event"], said)


def _last_line(log: Path) -> str:
    """The last line of a worker's output that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:LONGEST] if lines else ""


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait(10)
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}"


def _hung(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Ends a process that is late, after it has written its stacks to the log."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGUSR1)
        time.sleep(GRACE)
    return f"no answer within {seconds:.0f} s"


def _row(what: str, status: str, why: str, **more: float | str) -> Row:
    return {"what": what, "status": status, "seconds": 0.0, "why": why, **more}


class Progress(NamedTuple):
    """Where a group stands: rows to report now, and the case to go on with (None: the group is done)."""

    rows: list[Row]
    next: int | None


class GroupRun:
    """One group from its first to its last row. `environment` is what its first process said of the machine."""

    def __init__(self, group: Group, attempt: Attempt, seconds: float, until: float | None = None) -> None:
        """seconds: until the rows that are left are not reached. A process's start is not counted: on a fresh machine the
        import of torch alone may take a minute. until: the end in any case, on time.monotonic's clock.
        """
        self.group, self.attempt, self.seconds = group, attempt, seconds
        self._end = time.monotonic() + seconds
        self._last = self._end if until is None else until
        self.environment: dict[str, Any] = {}
        self._names: list[str] = []
        self._log = attempt.out / f"{group.name.replace(' ', '_')}.log"

    def rows(self) -> Iterator[Row]:
        """The rows as they come; one for every case, whatever happens to it."""
        self._log.unlink(missing_ok=True)
        first: int | None = 0
        while first is not None:
            begun = first
            with _process(self.group, begun, self.attempt, self._log) as (process, descriptor):
                for progress in self._listen(process, _Listener(descriptor), begun):
                    yield from ({"group": self.group.name, **row} for row in progress.rows)
                    first = progress.next

    def _listen(self, process: subprocess.Popen[bytes], listener: _Listener, first: int) -> Iterator[Progress]:
        """What one process achieves from case `first` on."""
        number, until, began, told = first, time.monotonic() + START, time.monotonic(), False
        end = self._last
        while True:
            event = listener.next(min(until, end))
            if event.kind == "cases":
                self._end = end = min(self._end + time.monotonic() - began, self._last)
                self._names, self.environment = event.said["names"], event.said["environment"]
            elif event.kind == "begin":
                number, began, told = event.said["number"], time.monotonic(), False
                until = began + event.said["seconds"]
            elif event.kind == "row":
                number, told, until = number + 1, True, time.monotonic() + START
                yield Progress([event.said["row"]], number if number < len(self._names) else None)
            elif event.kind == "end":
                yield Progress([], None)
                return
            elif event.kind == "late" and time.monotonic() >= end:
                yield Progress(self._not_reached(number), None)
                return
            elif told:  # between two cases: the last row has said what broke the process
                yield Progress([], number if number < len(self._names) else None)
                return
            else:
                if event.kind == "late":
                    why = _hung(process, time.monotonic() - began)
                else:
                    why = _how_it_ended(process)
                yield self._lost(number, why, time.monotonic() - began)
                return

    def _lost(self, number: int, why: str, seconds: float) -> Progress:
        """The process is gone: in case `number`, or before it had begun it."""
        what = self._names[number] if self._names else "all rows"
        row = _row(what, "failed", why, log=_last_line(self._log))
        row["seconds"] = round(seconds, 3)
        return Progress([row], number + 1 if number + 1 < len(self._names) else None)

    def _not_reached(self, number: int) -> list[Row]:
        why = f"{NOT_REACHED} {self.seconds:.0f} s of this group"
        return [_row(what, "missing", why) for what in self._names[number:] or ["all rows"]]
