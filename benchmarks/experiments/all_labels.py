"""All labels of Fashion-MNIST, no other images: `python -m benchmarks.experiments.all_labels`.

Supervised, label smoothing, distillation from a larger network, the same calibrated, and ReducedMPL; the large teacher
is trained with the same labels, once a seed, and its distributions over the training images are stored. Every student
gets the same CPU seconds: those that are cheaper to train take more steps, by ratios measured beforehand
(`--measure` measures them here). The large teacher's seconds are apart.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments.common import CONFIGS, options, record, run_rows, tell
from benchmarks.records import Row
from fastmpl.commands.distill import TeacherSource, distill
from fastmpl.data.errors import DataError
from fastmpl.data.stores.store import open_store
from fastmpl.run import trainer
from fastmpl.study.arms import Arm, run_arms

CONFIG = CONFIGS / "fashion_mnist_reduced.toml"
CASE = "all labels"
WITHOUT = {"feedback.kind": "off"}
SUPERVISED = {**WITHOUT, "method.name": "supervised", "data.store": ""}
LARGE = {**SUPERVISED, "student.width": 1024, "student.dropout": 0.3}
REDUCED = "ReducedMPL"
ARMS: Mapping[str, Mapping[str, Any]] = {
    "supervised": SUPERVISED,
    "label smoothing": {**SUPERVISED, "method.label_smoothing": 0.1},
    "distillation": {**WITHOUT, "method.name": "distillation"},
    "calibrated distillation": WITHOUT,
    REDUCED: {},
    "ReducedMPL, feedback alone": {"method.supervised_weight": 0.0},
}
PACE = {"supervised": 3.5, "label smoothing": 3.5, "distillation": 3.2, "calibrated distillation": 1.8}
"""Steps that take the CPU seconds of one of ReducedMPL's (`--measure`; the two that are not named take 1)."""


def arm_of(name: str, steps: int, stores: Path) -> Arm:
    """An arm's runs, or the large teacher's."""
    changes = {
        "run.steps": steps,
        "run.evaluate_every": max(steps // 10, 1),
        "run.checkpoint_every": steps,
        "data.labels": 0,
        "data.unlabelled": 0,
        "data.batch_labelled": 256,
        "data.store": str(stores / "{seed}"),
        **(LARGE if name == "large" else ARMS[name]),
    }
    return Arm(name.replace(", ", "-").replace(" ", "-").lower(), CONFIG, changes)


def store_teacher(large: Arm, asked: argparse.Namespace) -> None:
    """Stores the distributions of every seed's finished large teacher, unless they are there."""
    for seed in range(asked.seeds):
        store = asked.output / "stores" / str(seed)
        try:
            open_store(store)
        except DataError:
            source = TeacherSource(teacher=str(asked.output / f"{large.name}-{seed}"))
            distill(large.config_of(seed, asked.output), source, output=store, tell=tell)


def measure(asked: argparse.Namespace, stores: Path) -> None:
    """Tells each arm's CPU seconds a step, the median of three interleaved measurements, and its PACE."""
    taken: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(3):
            for name in ARMS:
                seconds = []
                for steps in (50, 300):
                    arm = arm_of(name, steps, stores)._replace(name=f"{turn}-{steps}-{name}")
                    started = time.process_time()
                    trainer.train(arm.config_of(0, Path(folder)), quiet=True, report=False)
                    seconds.append(time.process_time() - started)
                taken[name].append((seconds[1] - seconds[0]) / 250)
    medians = {name: statistics.median(of_arm) for name, of_arm in taken.items()}
    for name, seconds_a_step in medians.items():
        tell(f"{name}: {1e3 * seconds_a_step:.2f} ms, pace {medians[REDUCED] / seconds_a_step:.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("all_labels", __doc__.splitlines()[0], steps=4000)
    parser.add_argument("--measure", action="store_true", help="measure the arms' paces, train nothing else")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stores: Path = asked.output / "stores"
    large = arm_of("large", asked.steps, stores)
    found = run_arms([large], asked.seeds, asked.output, tell, asked.jobs)
    store_teacher(large, asked)
    if asked.measure:
        measure(asked, stores)
        return 0
    arms = {name: arm_of(name, round(asked.steps * PACE.get(name, 1.0)), stores) for name in ARMS}
    found |= run_arms(list(arms.values()), asked.seeds, asked.output, tell, asked.jobs)
    rows: list[Row] = run_rows(CASE, "large teacher", found[large.name])
    for name, arm in arms.items():
        rows += [{**row, "run_steps": arm.changes["run.steps"]} for row in run_rows(CASE, name, found[arm.name])]
    record(asked, rows, baseline="supervised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
