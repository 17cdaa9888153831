"""Is Meta Pseudo Labels a correction of labels? `python -m benchmarks.experiments.label_correction`.

Accuracy on the labelled and on the unlabelled training images, of teacher, student and a network trained on the labels
alone, half way and at the end (Pham et al. 2021, "Meta Pseudo Labels is not label correction").
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.experiments.common import options, record
from benchmarks.experiments.training_analysis import FIGURES, SETTINGS, train, write_figure
from benchmarks.records import Row
from fastmpl.report.analysis_charts import draw_training_accuracies
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("label_correction", __doc__.splitlines()[0], steps=1000)
    parser.set_defaults(output=Path("runs/training_analysis"))
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of the pictures")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for method in SETTINGS:
        found = train(method, asked, supervised=True)
        rows += rows_of(method, found)
        for chart in draw_training_accuracies(average_curves(found)):
            images = "unlabelled" if "unlabelled" in chart.title else "labelled"
            write_figure(f"label_correction_{method}_{images}", chart.svg, asked.figures)
    record(asked, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
