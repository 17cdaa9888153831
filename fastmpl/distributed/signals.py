"""How a run is asked to stop: signals only set a flag, which the trainer reads between steps; it saves and leaves."""

import os
import signal
from pathlib import Path
from types import FrameType

from fastmpl.errors import FastMPLError, Interrupted


class InterruptedByKey(Interrupted):
    """Ctrl-C: saved and resumable, with the exit code that shells expect."""

    exit_code = 130


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
