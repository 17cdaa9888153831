"""A biased large teacher on Fashion-MNIST, corrected by ReducedMPL, by a calibrator, by both, and what each is worth.

    python -m benchmarks.experiments.biased_teacher            1,000 clean labels, exchanged classes and none
    python -m benchmarks.experiments.biased_teacher --labels 50 1000 --biases exchanged many_to_one prior_shift \\
        --record biased_teacher_regimes --arms "calibrator" "feedback, exact" "calibrator and feedback"
                                                               where feedback beats the calibrator, or not

Every arm of a case and seed sees the same split, images, stored rows and initial weights.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments.common import CONFIGS, options, record, row, run_rows, tell
from benchmarks.experiments.large_teacher import BIASES, STEPS, stored_teacher
from benchmarks.records import Row
from fastmpl.study.arms import Arm, run_arms

CONFIG = CONFIGS / "fashion_mnist_reduced.toml"
ALONE = {"method.supervised_weight": 0.0}  # the feedback, and no supervised loss of the teacher
SAMPLED = {**ALONE, "method.targets": "sampled"}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "distillation": {"method.name": "distillation", "feedback.kind": "off"},
    "supervised": {"method.name": "supervised", "feedback.kind": "off", "data.store": ""},
    "feedback, exact": ALONE,
    "calibrator": {"feedback.kind": "off"},
    "calibrator and feedback": {},
    "feedback, per example": {**SAMPLED, "feedback.kind": "per_example"},
    "feedback, scalar": {**SAMPLED, "feedback.kind": "scalar"},
    "feedback, flipped": {**ALONE, "feedback.control": "flipped"},
}
LARGE = "large teacher"  # of every case, as it is: no arm
UNBIASED = ("distillation", "feedback, exact")  # of a teacher without bias: off and on


def arms_of(bias: str, labels: int, stores: Path, steps: int, names: Sequence[str]) -> list[Arm]:
    """The arms of one case; the seed's own store is filled in when an arm is run."""
    common = {
        "run.steps": steps,
        "run.evaluate_every": max(steps // 4, 1),
        "run.checkpoint_every": steps,
        "data.labels": labels,
        "data.batch_labelled": min(128, labels),
        "data.store": str(stores / (bias + "-{seed}")),
    }
    return [Arm(_slug(bias, labels, name), CONFIG, {**common, **ARMS[name]}) for name in names]


def _slug(bias: str, labels: int, name: str) -> str:
    return f"{bias}-{labels}-{name.replace(',', '').replace(' ', '-')}"


def baseline_of(arms: Sequence[str]) -> str:
    """What the arms are measured against: distillation, else the calibrator, else the large teacher that every case has."""
    return next((name for name in ("distillation", "calibrator") if name in arms), LARGE)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("biased_teacher", __doc__.splitlines()[0], steps=2000)
    parser.add_argument("--labels", type=int, nargs="+", default=[1000])
    parser.add_argument("--biases", nargs="+", choices=BIASES, default=["exchanged", "none"])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stores: Path = asked.output / "stores"
    large: dict[str, list[float]] = {}
    for bias in asked.biases:
        configs = [Arm("large", CONFIG).config_of(seed, asked.output) for seed in range(asked.seeds)]
        large[bias] = [
            stored_teacher(config, bias, stores / f"{bias}-{seed}", steps=STEPS, tell=tell)
            for seed, config in enumerate(configs)
        ]
    cases = [(bias, labels) for bias in asked.biases for labels in asked.labels]
    names = {case: [n for n in asked.arms if case[0] != "none" or n in UNBIASED] for case in cases}
    arms = [arm for case in cases for arm in arms_of(*case, stores, asked.steps, names[case])]
    outcomes = run_arms(arms, asked.seeds, asked.output, tell, asked.jobs)
    rows: list[Row] = []
    for bias, labels in cases:
        case = f"{bias.replace('_', ' ')}, {labels:,} labels"
        rows += [row(case, LARGE, seed, test) for seed, test in enumerate(large[bias])]
        for name in names[bias, labels]:
            rows += run_rows(case, name, outcomes[_slug(bias, labels, name)])
    record(asked, rows, baseline=baseline_of(asked.arms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
