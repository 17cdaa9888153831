"""The metrics of a run: summed on the device, read every `run.log_every` steps, written to `metrics.jsonl`.

A resumed run has the same lines as an uninterrupted one, except for timings. Leaves out what a line holds and how it is
read (`metrics_file`), when to log and to evaluate (the trainer), other loggers (`loggers`), and the display (`progress`,
`report`).
"""

import io
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import torch

from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.step.step_metrics import StepMetrics
from fastmpl.telemetry.loggers import Line as Written
from fastmpl.telemetry.loggers import Logger, Loggers, TensorBoard, Warn
from fastmpl.telemetry.metrics_file import FILE, Evaluation, read_lines
from fastmpl.telemetry.training_analysis import Targets, TrainingAccuracy
from fastmpl.untrusted import open_regular

READ_EVERY: Final = 100  # least steps between two reads of a GPU; a read waits for all queued work


class Line(NamedTuple):
    """Means over the steps since the line before; `skipped` is a sum. A mean without finite values is NaN."""

    step: int  # the last step of the line
    values: dict[str, float]


class Meter:
    """Sums the reports of the steps of a line. Finished lines stay on the device until several are read at once.

    `add` never waits for the device and always writes the same memory, so it can be part of a captured step. A value that
    is not finite belongs to a skipped update, which `skipped` counts, or to a step that does not measure it (the feedback,
    with `feedback.every` above 1): it is left out of the mean. `kept` (float64,
    [2, fields]: the sums, and the number of finite values of each) is the unfinished line. A checkpoint stores `kept`;
    finished lines are read before it.
    """

    def __init__(self, device: torch.device | str = "cpu", ranks: Ranks = ALONE, lines: int = 1) -> None:
        """lines: the largest number of finished lines that are kept."""
        shape = 2, len(StepMetrics._fields)
        self.kept = torch.zeros(shape, dtype=torch.float64, device=device)
        self.ranks = ranks
        self._ring = torch.zeros(lines, *shape, dtype=torch.float64, device=device)
        self._steps: list[int] = []  # of the finished lines

    def add(self, report: StepMetrics) -> None:
        """Adds the report of one step; its tensors may be overwritten afterwards, as in a captured graph."""
        values = torch.stack(report).detach().double()
        self.kept += torch.stack([values.nan_to_num(0.0, 0.0, 0.0), values.isfinite().double()])

    @property
    def is_full(self) -> bool:
        """Whether the finished lines must be read before another line is finished."""
        return len(self._steps) == len(self._ring)

    def finish(self, step: int) -> None:
        """Ends the present line with `step`."""
        self._ring[len(self._steps)] = self.kept
        self.kept.zero_()
        self._steps.append(step)

    def read(self) -> list[Line]:
        """The finished lines, averaged over their steps and over ranks; empty if no line is finished.

        It sends one message between ranks, so all ranks call it, and makes one transfer to the host.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return []
        rows = self._ring[: len(steps)].clone()
        self.ranks.all_reduce_mean_([rows])
        return [Line(step, _means(*row)) for step, row in zip(steps, rows.tolist(), strict=True)]

    def preview(self) -> dict[str, float]:
        """This rank's means over all steps that were not read yet, for a display; it waits for the device."""
        return _means(*(self.kept + self._ring[: len(self._steps)].sum(0)).tolist())


def _means(sums: list[float], counts: list[float]) -> dict[str, float]:
    means = [total / count if count else math.nan for total, count in zip(sums, counts, strict=True)]
    return dict(zip(StepMetrics._fields, means, strict=True)) | {"skipped": sums[StepMetrics._fields.index("skipped")]}


def lines_a_read(device: torch.device, log_every: int) -> int:
    """The number of lines that are read at once: those of `READ_EVERY` steps on a GPU, one on a CPU."""
    return -(-READ_EVERY // log_every) if device.type == "cuda" else 1


class Log:
    """Writes the lines of a run to its folder, on rank 0. Use it in a `with`."""

    def __init__(self, folder: Path, loggers: Sequence[Logger] | None = None, warn: Warn | None = None) -> None:
        """loggers: further ones; TensorBoard if not given. warn: called with a sentence if something fails."""
        self.folder = folder
        self._warn = warn or logging.getLogger(__name__).warning
        self._loggers = Loggers([TensorBoard(folder / "tensorboard")] if loggers is None else loggers, self._warn)
        self._dropped = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _open_to_append(folder / FILE)
        self._replace(read_lines(folder))

    def train(
        self, step: int, values: Mapping[str, float], seconds: float, images_per_second: float, waiting: float
    ) -> None:
        """Writes a `Line` of `Meter.read`, with its timings."""
        timing = {"seconds": seconds, "images_per_second": images_per_second, "waiting": waiting}
        self._write({"kind": "train", "step": step} | timing | dict(values))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Writes the score of one network on one split."""
        self._write({"kind": "evaluation"} | evaluation._asdict())

    def analysis(self, found: TrainingAccuracy | Targets) -> None:
        """Writes what `run.analyse` measured; loggers do not get it."""
        kind = "targets" if isinstance(found, Targets) else "training_accuracy"
        self._write({"kind": kind} | found._asdict(), to_loggers=False)

    def truncate_after(self, step: int) -> None:
        """Drops the lines of steps after `step`, from which the run continues."""
        self._replace([line for line in read_lines(self.folder) if line["step"] <= step])
        self._loggers.resume(step)

    def close(self) -> None:
        """Closes the file and the loggers, and says how many lines could not be written."""
        if self._dropped > 1:
            self._warn(f"{self._dropped:,} lines of {self.folder / FILE} could not be written.")
        self._loggers.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _replace(self, lines: Sequence[Written]) -> None:
        """Replaces the file by these lines atomically."""
        path, beside = self.folder / FILE, self.folder / (FILE + ".tmp")
        beside.write_bytes(b"".join(map(_encode, lines)))
        self._file.close()
        os.replace(beside, path)
        self._file = _open_to_append(path)

    def _write(self, line: Mapping[str, Any], *, to_loggers: bool = True) -> None:
        line = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}
        whole = os.fstat(self._file.fileno()).st_size
        try:
            content = _encode(line)
            if self._file.write(content) != len(content):
                raise OSError("the disk is full")
        except OSError as error:  # the run goes on; a checkpoint reports a full disk
            self._file.truncate(whole)
            self._dropped += 1
            if self._dropped == 1:
                self._warn(f"{self.folder / FILE} cannot be written: {error}. Training goes on; lines are missing.")
        if to_loggers:
            self._loggers.write(line)


def _open_to_append(path: Path) -> io.FileIO:
    """Raises OSError at once where a pipe is in the place of the file."""
    return open(path, "ab", buffering=0, opener=open_regular)


def _encode(line: Written) -> bytes:
    return json.dumps(dict(line), allow_nan=False).encode() + b"\n"
