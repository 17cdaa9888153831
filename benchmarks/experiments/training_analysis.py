"""What the two analyses of the paper share here: the runs on Fashion-MNIST.

*mpl*: 500 labels, all other training images unlabelled; perceptrons, whose size lets thirty runs fit into minutes of a CPU.
*reduced_mpl*: 1,000 labels, all other images unlabelled; the stored distributions are of a perceptron trained on 10,000
labels. Runs are shared: the second experiment takes those that the first has trained.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.experiments.common import CONFIGS, tell
from benchmarks.experiments.large_teacher import STEPS as TEACHER_STEPS
from benchmarks.experiments.large_teacher import stored_teacher
from fastmpl.study.analyses import MEASURED, SUPERVISED, Analyses, read_run
from fastmpl.study.arms import Arm, run_arms

SIZE: Mapping[str, Any] = {
    **{
        f"{role}.{key}": value
        for role in ("teacher", "student")
        for key, value in (("model", "perceptron"), ("depth", 3))
    },
    "data.channels": 1,
    "data.rand_augment": (0, 0),
}
SETTINGS: Mapping[str, tuple[Path, Mapping[str, Any]]] = {
    "mpl": (CONFIGS / "fashion_mnist_500.toml", SIZE),
    "reduced_mpl": (CONFIGS / "fashion_mnist_reduced.toml", {"data.unlabelled": 0, "student.average": 0.99}),
}
STEPS: Mapping[str, float] = {"mpl": 1.0, "reduced_mpl": 0.3}  # shares of --steps: the latter's are of more images


def train(method: str, asked: argparse.Namespace, *, supervised: bool) -> Analyses:
    """Trains the runs of a method, and its supervised ones where they are wanted, or takes the finished ones."""
    path, changes = SETTINGS[method]
    folder: Path = asked.output / method
    steps = max(round(STEPS[method] * asked.steps), 4)
    common = {
        **changes,
        "run.steps": steps,
        "run.evaluate_every": max(steps // 12, 1),
        "run.checkpoint_every": steps,
    }
    stores = folder / "stores"
    arm = Arm("method", path, {**common, **MEASURED})
    if method == "reduced_mpl":
        arm = arm._replace(changes={**arm.changes, "data.store": str(stores / "{seed}")})
        for seed in range(asked.seeds):
            trained = min(TEACHER_STEPS, steps)
            stored_teacher(arm.config_of(seed, folder), "none", stores / str(seed), steps=trained, tell=tell)
    arms = [arm, Arm("supervised", path, {**common, **SUPERVISED})] if supervised else [arm]
    run_arms(arms, asked.seeds, folder, tell, asked.jobs)
    found = {one.name: [read_run(folder / f"{one.name}-{seed}") for seed in range(asked.seeds)] for one in arms}
    return Analyses(found["method"], found.get("supervised", []), steps)
