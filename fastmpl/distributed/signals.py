"""How a run is asked to stop: a signal sets a flag, the trainer reads it between steps, saves, and leaves."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

from fastmpl.errors import FastMPLError, Interrupted

HANDLED: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class InterruptedByKey(Interrupted):
    """Ctrl-C: saved and resumable, with the exit code that shells expect."""

    exit_code = 130


def _show_cursor() -> None:
    """Gives a terminal the cursor back that the live display hides; nothing else of ours runs after `os._exit`."""
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\r\n")


class Stopper:
    """Notes SIGTERM, SIGUSR1, SIGHUP and Ctrl-C while it is entered. A second Ctrl-C ends the process at once.

    A signal that is ignored stays ignored: `nohup` ignores SIGHUP so that a run outlives its terminal.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None  # the first signal that came
        self._before: dict[signal.Signals, Any] = {}  # the handlers to restore

    def __enter__(self) -> Self:
        handled = [number for number in HANDLED if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.by is signal.SIGINT and number == signal.SIGINT:
            _show_cursor()
            os._exit(130)
        self.by = self.by or signal.Signals(number)  # a launcher sends TERM after the user's INT

    def begin(self, step: int) -> None:
        """Training begins with `step`; a single process has no other rank to tell."""

    def stops_after(self, step: int) -> bool:
        """Whether to stop after `step`. Several ranks ask their StopAgreement instead."""
        return self.by is not None

    def reason(self, folder: Path, step: int) -> FastMPLError:
        """The error to raise once the run is saved."""
        assert self.by is not None
        kind = InterruptedByKey if self.by is signal.SIGINT else Interrupted
        return kind(f"{folder} is saved at step {step} ({self.by.name}). The same command continues it.")
