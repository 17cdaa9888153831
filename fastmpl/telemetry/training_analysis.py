"""What `run.analyse` measures over training, as lines of `metrics.jsonl`, and the numbers that follow from them.

Two questions of the paper (Pham et al. 2021, "Meta Pseudo Labels") are answered. Does the student overfit the labelled
images, and do the teacher's labels become right? Accuracies on training images tell (`TrainingAccuracy`). Does the teacher
correct its labels, or only make them softer? The distributions that it gives to fixed images tell (`Targets`).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

MOMENTS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of training at which distributions are kept
DOZEN: Final = 12  # images whose distributions are kept


class TrainingAccuracy(NamedTuple):
    """The share of training images whose true class a network names, as they are evaluated: no augmentation."""

    step: int
    network: Literal["student", "average", "teacher"]
    images: Literal["labelled", "unlabelled"]
    accuracy: float
    measured: int


class Targets(NamedTuple):
    """The distributions that a teacher that learns gives to fixed unlabelled images."""

    step: int
    entropy: float  # mean over the images, nats
    confidence: float  # mean of the largest probability
    top: Sequence[int]  # the likeliest class of each image
    # of the first DOZEN images, at the MOMENTS alone
    probabilities: Sequence[Sequence[float]] = ()
    names: Sequence[str] = ()
    truth: Sequence[int] = ()  # -1 where unknown
    classes: Sequence[str] = ()


def moments(steps: int) -> list[int]:
    """The steps at which distributions are kept, of a run of `steps`."""
    return sorted({round(share * steps) for share in MOMENTS})


def read_accuracies(lines: Iterable[Mapping[str, Any]]) -> list[TrainingAccuracy]:
    """The accuracies in the lines of a run, by step; of a step that was measured twice, the later one."""
    rows = [_take(line, TrainingAccuracy._fields) for line in lines if line.get("kind") == "training_accuracy"]
    rows = [row for row in rows if {"network", "images"} <= row.keys()]
    found = [TrainingAccuracy(**row) for row in rows if _has_numbers(row, "step", "accuracy", "measured")]
    return sorted({row[:3]: row for row in found}.values(), key=lambda row: row.step)


def read_targets(lines: Iterable[Mapping[str, Any]]) -> list[Targets]:
    """The distributions in the lines of a run, by step."""
    rows = [_take(line, Targets._fields) for line in lines if line.get("kind") == "targets"]
    lists = Targets._fields[3:]
    found = [
        Targets(**row)
        for row in rows
        if _has_numbers(row, "step", "entropy", "confidence")
        and "top" in row
        and all(isinstance(row[name], list | tuple) for name in lists if name in row)
        and _are_distributions(row.get("probabilities", ()))
        and all(isinstance(name, str) for name in (*row.get("names", ()), *row.get("classes", ())))
        and all(isinstance(number, int) for number in (*row["top"], *row.get("truth", ())))
    ]
    return sorted({row.step: row for row in found}.values(), key=lambda row: row.step)


def _are_distributions(rows: Sequence[Any]) -> bool:
    """Whether these are rows of numbers, all of one length."""
    if not all(isinstance(row, list | tuple) and all(isinstance(value, int | float) for value in row) for row in rows):
        return False
    return len({len(row) for row in rows}) <= 1


def _take(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: line[name] for name in names if name in line}


def _has_numbers(row: Mapping[str, Any], *names: str) -> bool:
    """Whether a line holds these numbers; a damaged file may hold anything."""
    return all(isinstance(row.get(name), int | float) for name in names)


def share_flipped(targets: Sequence[Targets], since: int = 0) -> float:
    """The share of the images whose likeliest class ever changed between measurements from step `since` on."""
    tops = [found.top for found in targets if found.step >= since]
    if len(tops) < 2 or not tops[0]:
        return 0.0
    flipped = [any(a != b for a, b in pairwise(of_image)) for of_image in zip(*tops, strict=False)]
    return sum(flipped) / len(flipped)
