"""Starts a run again when it was killed or lost a rank: `fastmpl train --restarts N`, and launch/restart.py for launchers.

The whole group of ranks starts again, from the newest checkpoint and on another port, because ranks that are left cannot
go on without the one that was lost. What the user must change (a configuration, data, learning rates) is never tried again.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from fastmpl.distributed.parent_process import end_with_parent
from fastmpl.untrusted import read_json_object

FINAL: Final = (0, 2, 3, 4, 75, 130)  # exit codes of a run that is done, or that would end the same way again
FRUITLESS: Final = 2  # failures without a new checkpoint between them, after which it is given up
LONGEST_WAIT: Final = 60.0  # seconds between two attempts; the first waits one, each later one twice as long
_CHECKPOINT: Final = re.compile(r"step-(\d{1,12})")

Command = Callable[[int], Sequence[str]]  # of an attempt, counted from 0


class Ended(NamedTuple):
    """How an attempt ended: its exit code, and the step of the newest checkpoint."""

    code: int
    saved: int


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in a run's folder, by its name; 0 if there is none."""
    found = (_CHECKPOINT.fullmatch(path.name) for path in folder.glob("checkpoints/step-*"))
    return max((int(match[1]) for match in found if match), default=0)


def read_code(folder: Path, code: int) -> int:
    """The run's own exit code, which STATUS.json holds where a launcher gives another; `code` where it does not say."""
    if code in FINAL:
        return code
    try:
        own = read_json_object(folder / "STATUS.json").get("code")
    except (OSError, ValueError):
        return code
    return own if isinstance(own, int) and own else code


def free_port() -> int:
    """A port that nothing listens on now."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def supervise(
    command: Command,
    folder: Path,
    restarts: int,
    *,
    tell: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Runs `command`, again up to `restarts` times while it fails by no fault of the user's; returns the last exit code.

    TERM, INT, USR1 and HUP that this process receives are passed on, and end it together with the run.
    """
    fruitless = 0
    for attempt in range(restarts + 1):
        before = newest_step(folder)
        ended, signalled = _run_once(command(attempt), folder)
        if ended.code in FINAL or signalled:
            return ended.code
        fruitless = fruitless + 1 if ended.saved <= before else 0
        if attempt == restarts or fruitless >= FRUITLESS:
            reason = f"after {attempt + 1} attempts" if attempt == restarts else "twice without a new checkpoint"
            tell(f"The run failed {reason} (exit code {ended.code}) and is not started again.")
            return ended.code
        seconds = min(2.0**attempt, LONGEST_WAIT)
        tell(
            f"The run ended with exit code {ended.code} and is saved at step {ended.saved}: it starts again in "
            f"{seconds:.0f} s ({attempt + 1} of {restarts})."
        )
        wait(seconds)
    raise AssertionError("the last attempt returns")


def _mark_of(file: Path) -> tuple[int, ...]:
    """What changes with each write of a file, whatever the clocks of the machine and of its file server say."""
    try:
        facts = file.stat()
    except OSError:
        return ()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _run_once(command: Sequence[str], folder: Path) -> tuple[Ended, bool]:
    """An attempt, and whether this process was asked to end meanwhile."""
    asked: list[int] = []
    status = folder / "STATUS.json"
    earlier = _mark_of(status)
    environment = os.environ | {"MASTER_PORT": str(port := free_port()), "PET_MASTER_PORT": str(port)}
    process = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent)

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number != signal.SIGINT:  # a terminal sends it to both
            process.send_signal(number)

    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if _mark_of(status) != earlier:  # of this attempt
        code = read_code(folder, code)
    return Ended(128 - code if code < 0 else code, newest_step(folder)), bool(asked)


def restart_command(config: Path, resume: str, *options: str) -> Command:
    """The command of one process: what `resume` says holds for the first attempt, later ones continue."""

    def of(attempt: int) -> Sequence[str]:
        how = "auto" if attempt else resume
        return [sys.executable, "-m", "fastmpl", "train", str(config), "--resume", how, *options]

    return of
