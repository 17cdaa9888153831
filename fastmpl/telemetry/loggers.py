"""Loggers that receive a run's lines besides `metrics.jsonl`. A logger that fails is switched off; the run goes on.

TensorBoard is one; `trackers` has others. Another tracker is another class with the same three methods, and imports its
package itself. Leaves out `metrics.jsonl` (`metrics`).
"""

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

ROOM: Final = 1 << 20  # bytes that TensorBoard needs: it writes from a thread of its own
Line = Mapping[str, Any]  # as in `metrics.jsonl`; a number that is not finite is None
Warn = Callable[[str], None]


class Logger(Protocol):
    """Receives the lines of a run."""

    def write(self, line: Line) -> None:
        """Records one line."""

    def resume(self, step: int) -> None:
        """Discards the lines after `step`, which will be written again."""

    def close(self) -> None:
        """Ends the record."""


class TensorBoard:
    """Writes curves for TensorBoard into `folder`; imports it with the first line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._purge: int | None = None
        self._writer: Any = None

    def write(self, line: Line) -> None:
        """Records all numbers of a training line, or accuracy and loss of an evaluation."""
        if shutil.disk_usage(self.folder.parent).free < ROOM:  # its thread would print a traceback
            raise OSError(errno.ENOSPC, "the disk is full")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge)
        if line["kind"] == "train":
            scalars = {f"train/{name}": value for name, value in line.items() if name not in ("kind", "step")}
        else:
            scalars = {f"{line['split']}/{line['network']}_{name}": line[name] for name in ("accuracy", "loss")}
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, line["step"])

    def resume(self, step: int) -> None:
        """Tells TensorBoard to hide what was written after `step`."""
        self._purge = step + 1

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._writer is not None:
            self._writer.close()


class Loggers:
    """Several loggers as one that never raises. A logger that raises is reported once and not called again."""

    def __init__(self, loggers: Sequence[Logger], warn: Warn) -> None:
        self._loggers = list(loggers)
        self._warn = warn

    def write(self, line: Line) -> None:
        """Passes one line to each logger."""
        self._call_each(lambda logger: logger.write(line))

    def resume(self, step: int) -> None:
        """Tells each logger to discard the lines after `step`."""
        self._call_each(lambda logger: logger.resume(step))

    def close(self) -> None:
        """Closes each logger."""
        self._call_each(lambda logger: logger.close())

    def _call_each(self, action: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                action(logger)
            except Exception as error:  # third-party code may raise anything, also for a missing package
                self._loggers.remove(logger)
                name = getattr(logger, "name", type(logger).__name__)
                self._warn(f"{name} failed and is switched off, training goes on: {error}.")
