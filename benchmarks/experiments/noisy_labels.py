"""Noisy labels and a few trusted ones: feedback from the trusted images, and everything it should be compared with.

    python -m benchmarks.experiments.noisy_labels              pair noise 45 %, a perceptron, 20, 50 and 200 trusted
    python -m benchmarks.experiments.noisy_labels --noises pair:0.45 pair:0.6 symmetric:0.6 brightness:0.45 \\
        --record noisy_labels_regimes                          every noise
    python -m benchmarks.experiments.noisy_labels --networks conv --trusted 50 --record noisy_labels_conv
                                                               a small convolutional net, with augmentation

Settings are chosen by case on validation images, and test accuracy is reported: on the first two seeds the weight of the
exact feedback (the other kinds and the flipped control share it: 1 is the true gradient for every kind), and that of the
trusted images in the rivals that see both; then the rate and length of the fine-tuning.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.experiments import finetuning
from benchmarks.experiments.common import CONFIGS, options, parallel, record, row, tell
from benchmarks.records import Row
from fastmpl.study.arms import Arm, Outcome, run_arms

NOISY, TRUSTED, OFF, EXACT = "noisy", "trusted", "MPL, off", "MPL, exact"
CLEAN = "the same labels without noise"  # the ceiling: nobody has them
CONFIG = CONFIGS / "fashion_mnist_noisy.toml"
WEIGHTS = (0.3, 1.0, 3.0)  # of the feedback; 1 is the true gradient
TRUSTED_WEIGHTS = (0.2, 1.0)  # of their mean loss, beside that of the noisy ones
ALONE = {"method.name": "supervised", "feedback.kind": "off"}
SAMPLED = {"method.targets": "sampled"}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "MPL, per example": {**SAMPLED, "feedback.kind": "per_example"},
    "MPL, scalar": {**SAMPLED, "feedback.kind": "scalar"},
    "MPL, flipped": {"feedback.control": "flipped"},
}
GOLD = "gold loss correction"
BOTH = ("noisy and trusted", GOLD)  # the rivals that learn from both kinds of labels
FINETUNED = (NOISY, *BOTH, OFF, EXACT)
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "perceptron": {},
    "conv": {
        **{
            f"{role}.{key}": value
            for role in ("teacher", "student")
            for key, value in (("model", "conv"), ("width", 32))  # of a size for a CPU
        },
        "teacher.lr": 3e-3,  # with the perceptron's rates it is far from trained after 2,000 steps
        "student.lr": 0.5,
        "data.flip": True,
        "data.shift": 0.125,
    },
}


class Case(NamedTuple):
    """A kind and rate of noise, a number of trusted images, a network."""

    kind: str
    rate: float
    trusted: int
    network: str

    def __str__(self) -> str:
        return f"{self.network}, {self.kind} {self.rate:.0%}, {self.trusted} trusted"

    def slug(self, arm: str, setting: float | None = None) -> str:
        words = f"{self.network}-{self.kind}{self.rate:g}-{self.trusted}-{arm}".replace(",", "").replace(" ", "-")
        return words if setting is None else f"{words}-{setting:g}"


class Candidate(NamedTuple):
    """An arm at one setting of its weight, its runs (one a seed) and what was found of them, by seed."""

    arm: str
    weight: float | None
    runs: Arm
    outcomes: list[Outcome]


def base_of(case: Case, common: Mapping[str, Any]) -> Mapping[str, Any]:
    """What every arm of a case changes in the configuration."""
    return {
        **common,
        **NETWORKS[case.network],
        "data.noise": (case.kind, case.rate),
        "data.trusted": case.trusted,
        "data.batch_trusted": min(64, case.trusted),
    }


def mpl_arms(case: Case, common: Mapping[str, Any], weights: Sequence[float]) -> list[tuple[str, float | None, Arm]]:
    """The arms that the trainer tries: the baselines, and exact feedback at every weight."""
    clean = {"data.labels": case.trusted, "data.trusted": 0, "data.noise": ("none", 0.0)}  # the same images, see split
    few = {"data.batch_labelled": min(64, case.trusted)}
    base = base_of(case, common)
    found: list[tuple[str, float | None, Arm]] = [
        (NOISY, None, Arm(case.slug("noisy"), CONFIG, {**base, **ALONE})),
        (
            TRUSTED,
            None,
            Arm(case.slug("trusted"), CONFIG, {**base, **ALONE, **clean, **few, "data.batch_trusted": 0}),
        ),
        (OFF, None, Arm(case.slug("off"), CONFIG, {**base, "feedback.kind": "off"})),
        (CLEAN, None, Arm(case.slug("clean"), CONFIG, {**base, **ALONE, "data.noise": ("none", 0.0)})),
    ]
    return [*found, *(feedback_arm(case, common, EXACT, weight) for weight in weights)]


def feedback_arm(case: Case, common: Mapping[str, Any], name: str, weight: float) -> tuple[str, float, Arm]:
    """An arm with feedback."""
    settings = {**base_of(case, common), **OTHERS.get(name, {}), "feedback.weight": weight}
    return name, weight, Arm(case.slug(name, weight), CONFIG, settings)


def _last(outcome: Outcome) -> dict[str, float]:
    last: dict[str, float] = outcome["last"].get("average") or outcome["last"]["student"]
    return last


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The one whose validation accuracy at the last step is best, in the mean over its seeds."""
    return max(candidates, key=lambda c: sum(_last(o)["validation"] for o in c.outcomes) / len(c.outcomes))


def rows_of(case: Case, candidate: Candidate) -> list[Row]:
    """The rows of an arm as it was trained."""
    return [
        row(
            str(case),
            candidate.arm,
            seed,
            last["test"],
            validation=_percent(last["validation"]),
            weight=candidate.weight,
        )
        for seed, last in enumerate(map(_last, candidate.outcomes))
    ]


def rows_finetuned(case: Case, candidate: Candidate, grids: Sequence[Sequence[finetuning.Tuned]]) -> list[Row]:
    """The rows of an arm after fine-tuning, at the rate and length that are best in the mean over `grids`, one a seed."""
    places = range(len(grids[0]))
    best = max(places, key=lambda place: sum(of_seed[place].validation for of_seed in grids))
    settings: dict[str, Any] = {
        "weight": candidate.weight,
        "rate": grids[0][best].rate,
        "finetuned_steps": grids[0][best].steps,
    }
    name = f"{candidate.arm}, fine-tuned"
    return [
        row(str(case), name, seed, tuned.test, validation=_percent(tuned.validation), **settings)
        for seed, tuned in enumerate(of_seed[best] for of_seed in grids)
    ]


def _percent(share: float) -> float:
    return round(100 * share, 3)


def train_arms(
    asked: argparse.Namespace, cases: Sequence[Case], common: Mapping[str, Any]
) -> dict[Case, list[Candidate]]:
    """The trainer's arms of every case, each at the weight that the first seeds' validation images choose."""
    planned = {case: mpl_arms(case, common, asked.weights) for case in cases}
    every = [arm for of_case in planned.values() for _, _, arm in of_case]
    tried = run_arms(every, asked.choose_on, asked.output, tell, asked.jobs)
    best: dict[Case, list[Candidate]] = {}
    for case, of_case in planned.items():
        by_name: dict[str, list[Candidate]] = {}
        for name, weight, arm in of_case:
            by_name.setdefault(name, []).append(Candidate(name, weight, arm, tried[arm.name]))
        best[case] = [best_of(same) for same in by_name.values()]
        weight = next(c.weight for c in best[case] if c.arm == EXACT)
        assert weight is not None
        best[case] += [Candidate(*feedback_arm(case, common, name, weight), []) for name in OTHERS]
    arms = [c.runs for of_case in best.values() for c in of_case]
    outcomes = run_arms(arms, asked.seeds, asked.output, tell, asked.jobs)
    return {case: [c._replace(outcomes=outcomes[c.runs.name]) for c in of_case] for case, of_case in best.items()}


def rival_arm(case: Case, common: Mapping[str, Any], name: str, weight: float, noisy: Path) -> tuple[str, float, Arm]:
    """An arm that learns from both kinds of labels. noisy: the folder of the case's noisy run, for any seed."""
    by = {"teacher.model": str(noisy)} if name == GOLD else {"method.corruption": "identity"}
    method = {"method.name": "gold_correction", "feedback.kind": "off", "method.trusted_weight": weight}
    return name, weight, Arm(case.slug(name, weight), CONFIG, {**base_of(case, common), **method, **by})


def rivals(asked: argparse.Namespace, case: Case, common: Mapping[str, Any], noisy: Arm) -> list[Candidate]:
    """The arms that learn from both kinds of labels, at their best weights, chosen as the trainer's are."""
    judge = asked.output / f"{noisy.name}-{{seed}}"
    every = [rival_arm(case, common, name, weight, judge) for name in BOTH for weight in TRUSTED_WEIGHTS]
    tried = run_arms([arm for _, _, arm in every], asked.choose_on, asked.output, tell, asked.jobs)
    candidates = [Candidate(*each, tried[each[2].name]) for each in every]
    best = [best_of([c for c in candidates if c.arm == name]) for name in BOTH]
    outcomes = run_arms([c.runs for c in best], asked.seeds, asked.output, tell, asked.jobs)
    return [c._replace(outcomes=outcomes[c.runs.name]) for c in best]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("noisy_labels", __doc__.splitlines()[0], steps=2000)
    parser.add_argument("--noises", nargs="+", default=["pair:0.45"], help="KIND:RATE")
    parser.add_argument("--trusted", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["perceptron"])
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    parser.add_argument(
        "--choose-on", type=int, default=2, help="the first seeds, whose validation images choose weights"
    )
    parser.add_argument("--finetune-steps", type=int, nargs="+", default=list(finetuning.LENGTHS))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    noises = [(kind, float(rate)) for kind, rate in (text.split(":") for text in asked.noises)]
    cases = [Case(*noise, trusted, net) for net in asked.networks for noise in noises for trusted in asked.trusted]
    common = {"run.steps": asked.steps, "run.evaluate_every": asked.steps, "run.checkpoint_every": asked.steps}
    arms = train_arms(asked, cases, common)
    rows: list[Row] = []
    for case in cases:
        noisy = next(c.runs for c in arms[case] if c.arm == NOISY)
        candidates = [*arms[case], *rivals(asked, case, common, noisy)]
        tuned = [c for c in candidates if c.arm in FINETUNED]
        tasks = [
            finetuning.FinetuningTask(c.runs.config_of(seed, asked.output), lengths=asked.finetune_steps)
            for c in tuned
            for seed in range(asked.seeds)
        ]
        done = iter(parallel(finetuning.finetune_over_grid, tasks, asked.jobs))
        grids = {c.arm: [next(done) for _ in range(asked.seeds)] for c in tuned}
        for candidate in candidates:
            rows += rows_of(case, candidate)
            if candidate.arm in grids:
                rows += rows_finetuned(case, candidate, grids[candidate.arm])
        tell(f"{case}: done")
    record(asked, rows, baseline=f"{EXACT}, fine-tuned", chosen_on=asked.choose_on)
    return 0


if __name__ == "__main__":
    sys.exit(main())
