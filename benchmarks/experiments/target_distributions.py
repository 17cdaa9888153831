"""What happens to the teacher's labels over training? `python -m benchmarks.experiments.target_distributions`.

The share of fixed unlabelled images whose likeliest class ever changes, and the mean entropy of the distributions at 0, 25,
50, 75 and 100 % of training, for MPL and ReducedMPL (Pham et al. 2021, "not only a regularization strategy"). A second
record has the distributions of a dozen images, of which `python -m benchmarks.figures` draws the pictures.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.experiments.common import options, record
from benchmarks.experiments.training_analysis import SETTINGS, train
from benchmarks.records import Record, Row, save
from fastmpl.study.analyses import AnalysedRun, numbers_of
from fastmpl.telemetry.training_analysis import MOMENTS


def rows_of(method: str, seed: int, run: AnalysedRun, steps: int) -> list[Row]:
    """The numbers of one run. Entropy is a share of the largest there can be, the uniform distribution's."""
    found = numbers_of(run.targets, steps)
    classes = next(len(one.probabilities[0]) for one in run.targets if one.probabilities)
    values = {"likeliest class ever changes": found.flipped, "changes after a quarter": found.flipped_late}
    for share, entropy in zip(MOMENTS, found.entropies, strict=True):
        values[f"entropy at {100 * share:.0f} %"] = entropy / math.log(classes)
    return [{"case": method, "arm": arm, "seed": seed, "value": round(100 * v, 3)} for arm, v in values.items()]


def picture_rows(method: str, run: AnalysedRun, steps: int) -> list[Row]:
    """A row for each moment and image of the dozen, with its distribution over the classes."""
    return [
        {
            "method": method,
            "share of training": round(at.step / steps, 4),
            "image": image,
            "true class": at.classes[at.truth[image]],
            "classes": ", ".join(at.classes),
            "distribution": [round(value, 4) for value in distribution],
        }
        for at in run.targets
        for image, distribution in enumerate(at.probabilities)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("target_distributions", __doc__.splitlines()[0], steps=1000)
    parser.set_defaults(output=Path("runs/training_analysis"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, pictures = list[Row](), list[Row]()
    for method in SETTINGS:
        found = train(method, asked, supervised=False)
        for seed, run in enumerate(found.method):
            rows += rows_of(method, seed, run, found.steps)
        pictures += picture_rows(method, found.method[0], found.steps)
    record(asked, rows)
    save(Record(f"{asked.record}_images", "table", pictures, {"seed": 0, "steps": asked.steps}), asked.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
