"""Test accuracy at equal CPU seconds: supervised training, UDA, FixMatch, and Meta Pseudo Labels by its kinds of feedback.

    python -m benchmarks.experiments.time_to_accuracy --jobs 1
    python -m benchmarks.experiments.time_to_accuracy --jobs 1 --data noisy --budget 6      one of the two, in less time

On Fashion-MNIST with 500 labels, and on 10,000 labels of which 45 % are wrong (pair noise) with 50 trusted images, which
the feedback alone sees. Every run takes the steps that fill the budget, by the pace of a short run of its first seed, so
that its schedule ends there. ReducedMPL pays for its large teacher: supervised training for half of the budget, and the
stored distributions. CPU seconds are those of training on one thread; starting and evaluating are not counted.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import records
from benchmarks.experiments import few_labels, noisy_labels
from benchmarks.experiments.common import CONFIGS, options, parallel, record, row, tell
from benchmarks.experiments.cpu_clock import CountedRun, Point, train_counted
from benchmarks.experiments.feedback_every import NOISE, chosen_weight
from benchmarks.records import Row
from fastmpl.commands.distill import TeacherSource, distill
from fastmpl.config import Config
from fastmpl.study.arms import Arm

MARKS = (0.25, 0.5, 1.0)  # shares of the budget at which accuracies are told
EVALUATIONS = 16  # of a run
PACED = 40, 120  # steps of a short run between which its pace is measured
WITHOUT: Mapping[str, Any] = {"feedback.kind": "off", "feedback.images": "labelled"}
FIXMATCH: Mapping[str, Any] = {  # hard labels of confident weak views
    **WITHOUT,
    "method.name": "pseudo_label",
    "method.targets": "argmax",
    "method.label_view": "weak",
    "method.threshold": 0.95,
}
SUPERVISED, REDUCED = "supervised", "ReducedMPL, exact"
SMALL_TEACHER = {"teacher.model": "perceptron", "teacher.width": 128, "teacher.depth": 5, "teacher.lr": 3e-3}
ARMS: Mapping[str, Mapping[str, Any]] = {
    SUPERVISED: {**WITHOUT, "method.name": "supervised"},
    "UDA": {**WITHOUT, "method.name": "uda", "uda.weight": 1.0},
    "FixMatch": FIXMATCH,
    "MPL, scalar": {"method.targets": "sampled", "feedback.kind": "scalar"},
    "MPL, exact": {"feedback.kind": "exact"},
    REDUCED: {"method.name": "reduced_mpl", "feedback.kind": "exact", "teacher.optimiser": "adamw", **SMALL_TEACHER},
}


class Task(NamedTuple):
    """A data set with its networks, and the accuracy whose time is told."""

    name: str
    config: Path
    changes: Mapping[str, Any]
    target: float  # a share


def tasks() -> dict[str, Task]:
    """The tasks, by the word that asks for them."""
    noisy = {**noisy_labels.base_of(NOISE, {}), "feedback.weight": chosen_weight()}
    return {
        "few": Task("500 labels", CONFIGS / "fashion_mnist_500.toml", few_labels.CPU_SIZED, 0.7),
        "noisy": Task("noisy labels, 50 trusted", noisy_labels.CONFIG, noisy, 0.75),
    }


class Job(NamedTuple):
    """One arm and seed of a task, and the CPU seconds that it may take."""

    task: Task
    name: str
    seed: int
    budget: float
    output: Path

    def arm(self, name: str, steps: int, evaluate_every: int, part: str = "", store: str = "") -> Arm:
        lengths = {"run.steps": steps, "run.evaluate_every": evaluate_every, "run.checkpoint_every": steps}
        changes = {**self.task.changes, **ARMS[name], **lengths}
        if name == REDUCED:
            changes["data.store"] = store
        words = f"{self.task.name}-{self.name}{part}".replace(",", "").replace(" ", "-").lower()
        return Arm(words, self.task.config, changes)

    def train(self, name: str, seconds: float, part: str = "", store: str = "") -> CountedRun:
        """An arm's run that fills `seconds`, by the pace of its first seed."""
        first, last = PACED
        short = self.arm(name, last, first, part + "-pace", store)
        points = {p.step: p.seconds for p in train_counted(short.config_of(0, self.output)).points}
        steps = max(round(seconds * (last - first) / (points[last] - points[first])), EVALUATIONS)
        whole = self.arm(name, steps, steps // EVALUATIONS, part, store)
        return train_counted(whole.config_of(self.seed, self.output))


def store_scores(config: Config, teacher: Path, store: Path) -> float:
    """Stores a trained network's distributions; the CPU seconds of that, also where it was done before."""
    note = store.with_suffix(".json")
    if not note.is_file():
        began = time.process_time()
        distill(config, TeacherSource(teacher=str(teacher)), output=store, tell=tell)
        note.write_text(json.dumps(time.process_time() - began))
    return float(json.loads(note.read_text()))


def train_within_budget(job: Job) -> CountedRun:
    """The points of one run in the CPU seconds since its beginning, its large teacher's included."""
    torch.set_num_threads(1)
    if job.name != REDUCED:
        return job.train(job.name, job.budget)
    large = job.train(SUPERVISED, job.budget / 2, "-large")
    teacher = job.arm(SUPERVISED, 1, 1, "-large")
    folder = job.output / f"{teacher.name}-{job.seed}"
    stores = job.output / "stores"
    spent = large.seconds + store_scores(teacher.config_of(job.seed, job.output), folder, stores / folder.name)
    found = job.train(REDUCED, max(job.budget - spent, 0.1 * job.budget), store=f"{stores / teacher.name}-{{seed}}")
    later = [point._replace(seconds=point.seconds + spent) for point in found.points]
    return CountedRun(found.seconds + spent, found.steps, [*large.points, *later])


def accuracy_at(points: Sequence[Point], seconds: float) -> float:
    """The accuracy after `seconds`, between two evaluations on the line through them; at the ends that of the nearest."""
    before = next((p for p in reversed(points) if p.seconds <= seconds), points[0])
    after = next((p for p in points if p.seconds >= seconds), points[-1])
    if after.seconds <= before.seconds:
        return after.test if after.seconds >= seconds else before.test
    share = (seconds - before.seconds) / (after.seconds - before.seconds)
    return before.test + max(share, 0.0) * (after.test - before.test)


def seconds_to(points: Sequence[Point], target: float) -> float | None:
    """The seconds of the first evaluation from which on the accuracy stays at or above `target`; None if it does not."""
    below = [place for place, point in enumerate(points) if point.test < target]
    first = below[-1] + 1 if below else 0
    return points[first].seconds if first < len(points) else None


def rows_of(jobs: Sequence[Job], found: Sequence[CountedRun]) -> list[Row]:
    """A row for each arm, seed and mark of each task."""
    rows: list[Row] = []
    for task in dict.fromkeys(job.task.name for job in jobs):
        for share in MARKS:
            for job, run in zip(jobs, found, strict=True):
                if job.task.name == task:
                    seconds = share * job.budget
                    more = {"seconds": seconds, "taken": round(run.seconds, 2), "steps": run.steps}
                    case = f"{task}: {seconds:.3g} s"
                    rows.append(row(case, job.name, job.seed, accuracy_at(run.points, seconds), **more))
    return rows


def rows_of_times(jobs: Sequence[Job], found: Sequence[CountedRun]) -> list[Row]:
    """For each task and arm: how many seeds reach the task's accuracy for good, and the median of their CPU seconds."""
    times: dict[tuple[str, str], list[float | None]] = {}
    for job, run in zip(jobs, found, strict=True):
        data = f"{job.task.name}, {job.task.target:.0%}"
        times.setdefault((data, job.name), []).append(seconds_to(run.points, job.task.target))
    rows: list[Row] = []
    for (data, name), of_seeds in times.items():
        there = [seconds for seconds in of_seeds if seconds is not None]
        half = len(there) > len(of_seeds) / 2
        rows.append(
            {
                "data": data,
                "method": name,
                "runs that reach it": f"{len(there)} of {len(of_seeds)}",
                "CPU seconds, median": f"{statistics.median(there):.1f}" if half else "",
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("time_to_accuracy", __doc__.splitlines()[0], steps=0, seeds=3)
    parser.add_argument("--budget", type=float, default=20.0, help="CPU seconds of a run")
    parser.add_argument("--data", nargs="+", choices=["few", "noisy"], default=["few", "noisy"])
    asked: argparse.Namespace = parser.parse_args(arguments)
    jobs = [
        Job(task, name, seed, asked.budget, asked.output)
        for seed in range(asked.seeds)
        for task in (tasks()[word] for word in asked.data)
        for name in ARMS
    ]
    first = len(jobs) // asked.seeds  # jobs of the first seed, whose paces the others take
    found = [run for part in (jobs[:first], jobs[first:]) for run in parallel(train_within_budget, part, asked.jobs)]
    path = record(asked, rows_of(jobs, found), budget=asked.budget)
    times = records.Record(f"{asked.record}_reached", "table", rows_of_times(jobs, found), {"budget": asked.budget})
    records.save(times, path.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
