"""Is Meta Pseudo Labels a correction of labels? `python -m benchmarks.experiments.label_correction`.

Accuracy on the labelled and on the unlabelled training images, of teacher, student and a network trained on the labels
alone, half way and at the end (Pham et al. 2021, "Meta Pseudo Labels is not label correction"). A second record has the
curves, of which `python -m benchmarks.figures` draws the pictures.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.experiments.common import options, record
from benchmarks.experiments.training_analysis import SETTINGS, train
from benchmarks.records import Record, Row, save
from fastmpl.study.analyses import AnalysedRun, Analyses, average_curves
from fastmpl.telemetry.training_analysis import TrainingAccuracy

WHEN = {"half way": 0.5, "at the end": 1.0}


def _at(run: AnalysedRun, network: str, images: str, step: float) -> TrainingAccuracy:
    """The measurement nearest to a step; a student that keeps an average is measured by it."""
    rows = [row for row in run.accuracies if (row.network, row.images) == (network, images)]
    if not rows and network == "average":
        return _at(run, "student", images, step)
    return min(rows, key=lambda row: abs(row.step - step))


def rows_of(method: str, found: Analyses) -> list[Row]:
    """A row for each network, kind of images, moment and seed."""
    arms = {"supervised": (found.supervised, "average"), "teacher": (found.method, "teacher")}
    arms["student"] = (found.method, "average")
    return [
        {
            "case": f"{method}, {images}, {when}",
            "arm": arm,
            "seed": seed,
            "value": round(100 * _at(run, network, images, share * found.steps).accuracy, 3),
        }
        for images in ("labelled", "unlabelled")
        for when, share in WHEN.items()
        for arm, (runs, network) in arms.items()
        for seed, run in enumerate(runs)
    ]


def curve_rows(method: str, found: Analyses) -> list[Row]:
    """A row for each network, kind of images and step: the mean accuracy over seeds."""
    return [
        {"method": method, "curve": name, **row._replace(accuracy=round(row.accuracy, 5))._asdict()}
        for name, rows in average_curves(found).items()
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("label_correction", __doc__.splitlines()[0], steps=1000)
    parser.set_defaults(output=Path("runs/training_analysis"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, curves = list[Row](), list[Row]()
    for method in SETTINGS:
        found = train(method, asked, supervised=True)
        rows += rows_of(method, found)
        curves += curve_rows(method, found)
    record(asked, rows)
    save(Record(f"{asked.record}_curves", "table", curves, {"seeds": asked.seeds, "steps": asked.steps}), asked.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
