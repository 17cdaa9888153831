"""What a run measures: added up on the device, read every so many steps, written where a person and a program find it.

`metrics.jsonl` is the record: one JSON object a line, whole or absent, the same for an interrupted and resumed run as
for an uninterrupted one but for timings. Leaves out when to log and to evaluate (the trainer), the other loggers
(`loggers`), and what it looks like (`progress`, `report`).

A line is `{"kind": "train", "step", "seconds", "images_per_second", "waiting", <fields of Report>}` or
`{"kind": "evaluation", <fields of Evaluation>}`; a number that is not finite is null. `waiting` is the share of the
time in which the host waited for the next batch.
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import torch

from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.step.step_keys import Report
from fastmpl.telemetry.loggers import Line as Written
from fastmpl.telemetry.loggers import Logger, Loggers, TensorBoard, Warn

FILE: Final = "metrics.jsonl"
READ_EVERY: Final = 100  # steps between two reads of a GPU, at least; to read is to wait for all that was asked of it


class Evaluation(NamedTuple):
    """One network on one split; `step` counts on through fine-tuning."""

    step: int
    phase: Literal["train", "finetune"]
    network: Literal["student", "average", "teacher"]
    split: Literal["validation", "test"]
    accuracy: float  # share in [0, 1]
    loss: float  # mean cross entropy, nats
    images: int


class Line(NamedTuple):
    """The means of the steps since the line before, `skipped` summed; NaN where nothing was finite."""

    step: int  # the last of them
    values: dict[str, float]


class Meter:
    """Reports added up over the steps of a line; finished lines wait on the device until several are read at once.

    `add` never waits for the device and always writes the same memory, so that it can be part of a captured step. A
    value that is not finite belongs to an update that was skipped: it is left out of its mean, and `skipped` counts it.
    `kept` (float64, 2 x fields: sums, and how many finite values each has) is the unfinished line. Whoever reads before
    a checkpoint has the finished lines in the record and need store `kept` alone.
    """

    def __init__(self, device: torch.device | str = "cpu", ranks: Ranks = ALONE, lines: int = 1) -> None:
        """lines: how many finished ones there is room for."""
        shape = 2, len(Report._fields)
        self.kept = torch.zeros(shape, dtype=torch.float64, device=device)
        self.ranks = ranks
        self._ring = torch.zeros(lines, *shape, dtype=torch.float64, device=device)
        self._steps: list[int] = []  # of the finished lines

    def add(self, report: Report) -> None:
        """One step more; its tensors may be overwritten afterwards, as those of a captured graph are."""
        values = torch.stack(report).detach().double()
        self.kept += torch.stack([values.nan_to_num(0.0, 0.0, 0.0), values.isfinite().double()])

    @property
    def is_full(self) -> bool:
        """Whether the finished lines must be read before another one is."""
        return len(self._steps) == len(self._ring)

    def finish(self, step: int) -> None:
        """The line ends with that step."""
        self._ring[len(self._steps)] = self.kept
        self.kept.zero_()
        self._steps.append(step)

    def read(self) -> list[Line]:
        """The finished lines, each a mean over its steps and over ranks.

        One message between ranks, so all of them call it, and one transfer to the host; none where no line is finished.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return []
        rows = self._ring[: len(steps)].clone()
        self.ranks.all_reduce_mean_([rows])
        return [Line(step, _means(*row)) for step, row in zip(steps, rows.tolist(), strict=True)]


def _means(sums: list[float], counts: list[float]) -> dict[str, float]:
    means = [total / count if count else math.nan for total, count in zip(sums, counts, strict=True)]
    return dict(zip(Report._fields, means, strict=True)) | {"skipped": sums[Report._fields.index("skipped")]}


def lines_a_read(device: torch.device, log_every: int) -> int:
    """Lines that are read at once: on a GPU those of at least `READ_EVERY` steps; a CPU is not waited for."""
    return -(-READ_EVERY // log_every) if device.type == "cuda" else 1


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, none if there is no file. What a crash or a power cut tore is left out."""
    path = folder / FILE
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    lines = []
    for text in whole.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


class Log:
    """Writes a run's lines to its folder; usable in a `with`. One per run, on rank 0."""

    def __init__(self, folder: Path, loggers: Sequence[Logger] | None = None, warn: Warn | None = None) -> None:
        """loggers: besides `metrics.jsonl`; TensorBoard if not given. warn: told in a sentence what stopped working."""
        self.folder = folder
        self._warn = warn or logging.getLogger(__name__).warning
        self._loggers = Loggers([TensorBoard(folder / "tensorboard")] if loggers is None else loggers, self._warn)
        self._lost = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / FILE).open("ab", buffering=0)
        self._replace(read_lines(folder))

    def train(
        self, step: int, values: Mapping[str, float], seconds: float, images_per_second: float, waiting: float
    ) -> None:
        """The means of the steps up to `step`, one `Line` of `Meter.read`."""
        timing = {"seconds": seconds, "images_per_second": images_per_second, "waiting": waiting}
        self._write({"kind": "train", "step": step} | timing | dict(values))

    def evaluation(self, evaluation: Evaluation) -> None:
        """One network's accuracy on one split."""
        self._write({"kind": "evaluation"} | evaluation._asdict())

    def truncate_after(self, step: int) -> None:
        """Drops the lines beyond `step`, from which the run goes on."""
        self._replace([line for line in read_lines(self.folder) if line["step"] <= step])
        self._loggers.resume(step)

    def close(self) -> None:
        """Closes file and loggers."""
        self._loggers.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _replace(self, lines: Sequence[Written]) -> None:
        """The file has these lines, and no others, at every moment that something could go wrong."""
        path, beside = self.folder / FILE, self.folder / (FILE + ".tmp")
        beside.write_bytes(b"".join(map(_encoded, lines)))
        self._file.close()
        os.replace(beside, path)
        self._file = path.open("ab", buffering=0)

    def _write(self, line: Mapping[str, Any]) -> None:
        line = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}
        whole = os.fstat(self._file.fileno()).st_size
        try:
            content = _encoded(line)
            if self._file.write(content) != len(content):
                raise OSError("the disk is full")
        except OSError as error:  # the run outlives its record: a full disk is the checkpoint's matter
            self._file.truncate(whole)
            self._lost += 1
            if self._lost == 1:
                self._warn(f"{self.folder / FILE} cannot be written: {error}. Training goes on; lines are missing.")
        self._loggers.write(line)


def _encoded(line: Written) -> bytes:
    return json.dumps(dict(line), allow_nan=False).encode() + b"\n"
