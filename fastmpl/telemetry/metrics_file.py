"""The lines of a run's `metrics.jsonl`, one JSON object each, and how they are read.

Needs no torch, which takes seconds to import.

A line is `{"kind": "train", "step", "seconds", "images_per_second", "waiting", <fields of StepMetrics>}` or
`{"kind": "evaluation", <fields of Evaluation>}`, or, under run.analyse, `{"kind": "training_accuracy", ...}` or
`{"kind": "targets", ...}` with the fields of `fastmpl.telemetry.training_analysis`. A number that is not finite is null.
`waiting` is the share of the time that the host spent waiting for the next batch.
"""

import json
import math
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from fastmpl.untrusted import read_bytes

FILE: Final = "metrics.jsonl"


class Evaluation(NamedTuple):
    """The score of one network on one split; `step` counts through all phases."""

    step: int
    phase: Literal["train", "finetune"]
    network: Literal["student", "average", "teacher"]
    split: Literal["validation", "test"]
    accuracy: float  # share in [0, 1]
    loss: float  # mean cross entropy, nats
    images: int
    macro_recall: float | None = None  # means over the classes that there are images of; absent in old files
    macro_f1: float | None = None


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; empty if there is no file. Lines that a run does not write are skipped."""
    path = folder / FILE
    try:
        whole = read_bytes(path).rpartition(b"\n")[0]
    except OSError:
        return []
    lines = []
    for text in whole.split(b"\n"):
        try:
            line = json.loads(text, parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int and isinstance(line.get("kind"), str):
            lines.append(line)
    return lines


def _finite(number: str) -> float:
    """A number of a line; Log writes null for those that are not finite. Raises ValueError."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not finite")
    return value
