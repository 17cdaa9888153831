"""Where a run's lines go besides `metrics.jsonl`: a convenience, and none of it may stop a run.

TensorBoard is here; another tracker is another class with the same three methods, the only one to import its package.
Leaves out the record itself (`metrics`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Line = Mapping[str, Any]  # as in `metrics.jsonl`; a number that is not finite is None
Warn = Callable[[str], None]


class Logger(Protocol):
    """Something that takes lines as they come."""

    def write(self, line: Line) -> None:
        """One line."""

    def resume(self, step: int) -> None:
        """Lines after `step` are about to be written again."""

    def close(self) -> None:
        """No more lines."""


class TensorBoard:
    """Curves in `folder` for TensorBoard, which is not imported before the first line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._purge: int | None = None
        self._writer: Any = None

    def write(self, line: Line) -> None:
        """Every number of a training line; accuracy and loss of an evaluation."""
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
    """Several loggers as one that never raises: what one of them raises is said once, and it is not asked again."""

    def __init__(self, loggers: Sequence[Logger], warn: Warn) -> None:
        self._loggers = list(loggers)
        self._warn = warn

    def write(self, line: Line) -> None:
        """One line to each."""
        self._each(lambda logger: logger.write(line))

    def resume(self, step: int) -> None:
        """Tells each from where lines come again."""
        self._each(lambda logger: logger.resume(step))

    def close(self) -> None:
        """Closes each."""
        self._each(lambda logger: logger.close())

    def _each(self, action: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                action(logger)
            except Exception as error:  # whatever a third party raises, a missing package included
                self._loggers.remove(logger)
                self._warn(f"{type(logger).__name__} failed and is switched off, training goes on: {error}.")
