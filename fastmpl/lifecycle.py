"""A run's claim on its folder, its status, and how it is asked to stop.

STATUS.json is the truth about a run: a launcher's exit code is not. Signals only set a flag; the trainer looks at it
between steps, saves, and leaves.
"""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

from fastmpl.errors import FastMPLError, Interrupted, StorageError

State = Literal["running", "done", "interrupted", "failed"]


class InterruptedByKey(Interrupted):
    """Ctrl-C: saved and resumable, with the exit code that shells expect."""

    exit_code = 130


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the run's folder: a second run in it is refused with the first one's process and host."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}. Set run.output to a folder of yours."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise StorageError(
                f"{folder} is in use by {holder}. Wait for it, stop it, or use another run.name."
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def write_status(folder: Path, state: State, step: int, sentence: str = "") -> None:
    """Replaces STATUS.json as a whole."""
    status = {"state": state, "step": step, "process": os.getpid(), "host": socket.gethostname(), "message": sentence}
    draft = folder / f"STATUS.json.tmp-{os.getpid()}"
    draft.write_text(json.dumps(status, indent=1) + "\n")
    draft.replace(folder / "STATUS.json")


class Stopper:
    """Whether TERM, USR1 or Ctrl-C asked this process to stop. A second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None

    def __enter__(self) -> "Stopper":
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.by is signal.SIGINT and number == signal.SIGINT:
            os._exit(130)
        self.by = self.by or signal.Signals(number)  # a launcher sends TERM after the user's INT

    def begin(self, step: int) -> None:
        """Training begins with `step`: nothing to tell anybody in one process."""

    def stops_after(self, step: int) -> bool:
        """Whether to stop after `step`. Several ranks ask their Guard, which agrees with the others."""
        return self.by is not None

    def reason(self, folder: Path, step: int) -> FastMPLError:
        """What to raise once the run is saved."""
        assert self.by is not None
        kind = InterruptedByKey if self.by is signal.SIGINT else Interrupted
        return kind(f"{folder} is saved at step {step} ({self.by.name}). The same command continues it.")
