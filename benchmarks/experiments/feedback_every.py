"""What credit at each k-th step is worth, and what it costs: accuracy and CPU seconds at k = 1, 2, 4, 8, and without.

    python -m benchmarks.experiments.feedback_every --jobs 1

On two tasks in which feedback decides: noisy labels with 50 trusted images (pair 45 %, perceptrons, exact feedback with
the weight that `noisy_labels` chose on validation images), and a biased large teacher that learns from nothing but the
student's loss on 1,000 labels (exchanged classes, exact feedback). CPU seconds are those of training, one thread; the arms
of a seed take turns.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import records
from benchmarks.experiments import biased_teacher, noisy_labels
from benchmarks.experiments.common import options, parallel, record, row, tell
from benchmarks.experiments.cpu_clock import train_counted
from benchmarks.experiments.large_teacher import STEPS, stored_teacher
from fastmpl.study.arms import Arm

EVERY = (1, 2, 4, 8)
NOISE = noisy_labels.Case("pair", 0.45, 50, "perceptron")
BIAS, LABELS = "exchanged", 1000


class Task(NamedTuple):
    """An experiment's arm with exact feedback at every step."""

    name: str
    arm: Arm


def chosen_weight() -> float:
    """The weight of the exact feedback that the record of the noisy labels chose."""
    rows = records.load("noisy_labels").rows
    found = {row["weight"] for row in rows if (row["case"], row["arm"]) == (str(NOISE), noisy_labels.EXACT)}
    (weight,) = found
    assert isinstance(weight, float)
    return weight


def tasks_of(steps: int, stores: Path) -> list[Task]:
    """The two tasks, as their own experiments train them; evaluated once, at the end."""
    common = {"run.steps": steps, "run.evaluate_every": steps, "run.checkpoint_every": steps}
    _, _, noisy = noisy_labels.feedback_arm(NOISE, common, noisy_labels.EXACT, chosen_weight())
    (biased,) = biased_teacher.arms_of(BIAS, LABELS, stores, steps, ["feedback, exact"])
    biased = biased._replace(changes={**biased.changes, **common})
    return [Task(f"noisy labels: {NOISE}", noisy), Task(f"biased teacher: {BIAS}, {LABELS:,} labels", biased)]


def arms_of(task: Task) -> dict[str, Arm]:
    """The arms of a task, by the name in the record."""

    def change(name: str, **feedback: Any) -> Arm:
        changes = {f"feedback.{key}": value for key, value in feedback.items()}
        return Arm(f"{task.arm.name}-{name.replace(' ', '')}", task.arm.config, {**task.arm.changes, **changes})

    return {f"every {k}": change(f"every {k}", every=k) for k in EVERY} | {"off": change("off", kind="off")}


def store_teachers(asked: argparse.Namespace, arm: Arm, stores: Path) -> None:
    """Trains the large teacher of every seed and stores its distributions, unless they are there."""
    for seed in range(asked.seeds):
        stored_teacher(arm.config_of(seed, asked.output), BIAS, stores / f"{BIAS}-{seed}", steps=STEPS, tell=tell)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options("feedback_every", __doc__.splitlines()[0], steps=2000).parse_args(arguments)
    stores: Path = asked.output / "stores"
    tasks = tasks_of(asked.steps, stores)
    store_teachers(asked, tasks[1].arm, stores)
    names = arms_of(tasks[0])
    runs = [
        (task.name, name, seed, arm.config_of(seed, asked.output))
        for task in tasks
        for seed in range(asked.seeds)
        for name, arm in arms_of(task).items()
    ]
    tell(f"{len(runs)} runs to train in {asked.output}")
    counted = parallel(train_counted, [config for *_, config in runs], asked.jobs)
    rows = [
        row(task, name, seed, found.points[-1].test, cpu_seconds=round(found.seconds, 2))
        for (task, name, seed, _), found in zip(runs, counted, strict=True)
    ]
    rows.sort(key=lambda each: [*names].index(str(each["arm"])))  # the table takes its arms in this order
    record(asked, rows, baseline="every 1", weight=chosen_weight())
    return 0


if __name__ == "__main__":
    sys.exit(main())
