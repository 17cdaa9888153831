"""What a run says at its end: its accuracy and of which network, where its report and weights are, the next command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastmpl.run.scores import Network, Split
from fastmpl.run.student_file import WEIGHTS
from fastmpl.telemetry.progress import duration, percent


class Results(NamedTuple):
    """The results of a finished run: accuracies in [0, 1] by network and split. `results.json` holds the same."""

    steps: int
    last: dict[Network, dict[Split, float]]
    selected: dict[str, Any] | None  # the best student on the validation images, and its step
    finetuned: dict[Split, float] | None
    seconds: float
    headline: dict[str, Any]  # the network in student.safetensors: network, step, description, accuracies by split


def closing_lines(
    folder: Path, results: Results, images: Mapping[Split, int], *, report: bool, of_points: bool, trained: bool = True
) -> list[str]:
    """The last lines of a run in `folder`.

    trained: whether steps were taken now; a finished run says that it was one, and how it is trained again or further.
    images: the number of images of each split. report: whether one was written. of_points: whether points are classified,
    which `fastmpl predict` cannot read.
    """
    splits: tuple[Split, ...] = ("test", "validation")
    found = results.headline
    shares = [f"{percent(found[split])} of {images[split]:,} {split} images" for split in splits if split in found]
    known = ", ".join(shares) if shares else "unknown: there are neither test nor validation images"
    done = f"done      {results.steps:,} steps, {duration(results.seconds)} of training"
    if not trained:
        done += " before; nothing was trained now (raise run.steps to go on, --resume never to start over)"
    return [
        done,
        f"accuracy  {known}",
        f"network   {found['description']}",
        *([f"report    {folder / 'report.html'}"] if report else []),
        f"weights   {folder / WEIGHTS}",
        f"next      fastmpl {'evaluate' if of_points else 'predict'} {folder}{'' if of_points else ' IMAGES'}",
    ]
