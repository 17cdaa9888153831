"""What a run says at its end: its accuracy, where its report and its weights are, and the next command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastmpl.run.scores import Network, Split
from fastmpl.run.student_file import WEIGHTS
from fastmpl.telemetry.progress import duration, percent

NAMES: Final[dict[Network, str]] = {"student": "student", "average": "averaged student", "teacher": "teacher"}


class Results(NamedTuple):
    """The results of a finished run: accuracies in [0, 1] by network and split. `results.json` holds the same."""

    steps: int
    last: dict[Network, dict[Split, float]]
    selected: dict[str, Any] | None  # the best student on the validation images, and its step
    finetuned: dict[Split, float] | None
    seconds: float


def closing_lines(
    folder: Path, results: Results, images: Mapping[Split, int], *, report: bool, of_points: bool
) -> list[str]:
    """The last lines of a run in `folder`.

    images: the number of images of each split. report: whether one was written. of_points: whether points are classified,
    which `fastmpl predict` cannot read.
    """
    network: Network = "average" if "average" in results.last else "student"
    name = NAMES[network] if results.finetuned is None else "fine-tuned student"
    found = results.last[network] if results.finetuned is None else results.finetuned
    splits: tuple[Split, ...] = ("test", "validation")
    shares = [f"{percent(found[split])} of {images[split]:,} {split} images" for split in splits if split in found]
    known = f"{', '.join(shares)} ({name})" if shares else "unknown: there are neither test nor validation images"
    return [
        f"done      {results.steps:,} steps, {duration(results.seconds)} of training",
        f"accuracy  {known}",
        *([f"report    {folder / 'report.html'}"] if report else []),
        f"weights   {folder / WEIGHTS} ({name})",
        f"next      fastmpl {'evaluate' if of_points else 'predict'} {folder}{'' if of_points else ' IMAGES'}",
    ]
