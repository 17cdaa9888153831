"""All labels of Fashion-MNIST, no other images: `python -m benchmarks.experiments.r6`.

Supervised, label smoothing, distillation from a larger network, the same calibrated, and ReducedMPL; the large teacher
is trained with the same labels, once a seed, and its distributions over the training images are stored. Every student
takes the same number of steps; seconds stand in the record beside the accuracy, the large teacher's apart.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.experiments.common import CONFIGS, options, record, run_rows, tell
from benchmarks.records import Row
from fastmpl.data.errors import DataError
from fastmpl.data.stores.store import open_store
from fastmpl.distill import Source, distill
from fastmpl.experiment import Arm, run_arms

CONFIG = CONFIGS / "fashion_mnist_reduced.toml"
CASE = "all labels"
WITHOUT = {"feedback.kind": "off"}
SUPERVISED = {**WITHOUT, "method.name": "supervised", "data.store": ""}
LARGE = {**SUPERVISED, "student.width": 1024, "student.dropout": 0.3}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "supervised": SUPERVISED,
    "label smoothing": {**SUPERVISED, "method.label_smoothing": 0.1},
    "distillation": {**WITHOUT, "method.name": "distillation"},
    "calibrated distillation": WITHOUT,
    "ReducedMPL": {},
    "ReducedMPL, feedback alone": {"method.supervised_weight": 0.0},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("r6", __doc__.splitlines()[0], steps=10_000)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    common = {
        "run.steps": asked.steps,
        "run.evaluate_every": max(asked.steps // 10, 1),
        "run.checkpoint_every": asked.steps,
        "data.labels": 0,
        "data.unlabelled": 0,
        "data.batch_labelled": 256,
        "data.store": str(asked.output / "stores" / "{seed}"),
    }
    large = Arm("large", CONFIG, {**common, **LARGE})
    found = run_arms([large], asked.seeds, asked.output, tell, asked.jobs)
    for seed in range(asked.seeds):
        store = asked.output / "stores" / str(seed)
        source = Source(teacher=str(asked.output / f"large-{seed}"))
        try:
            open_store(store)
        except DataError:
            distill(large.of(seed, asked.output), source, output=store, tell=tell)
    slugs = {name: name.replace(", ", "-").replace(" ", "-").lower() for name in ARMS}
    arms = [Arm(slugs[name], CONFIG, {**common, **changes}) for name, changes in ARMS.items()]
    found |= run_arms(arms, asked.seeds, asked.output, tell, asked.jobs)
    rows: list[Row] = run_rows(CASE, "large teacher", found["large"])
    for name in ARMS:
        rows += run_rows(CASE, name, found[slugs[name]])
    record(asked, rows, baseline="supervised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
