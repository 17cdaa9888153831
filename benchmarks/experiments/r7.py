"""Noisy labels and a few trusted ones: feedback from the trusted images, and everything it should be compared with.

    python -m benchmarks.experiments.r7                        pair noise 45 %, a perceptron, 20, 50 and 200 trusted
    python -m benchmarks.experiments.r7 --noises pair:0.45 pair:0.6 symmetric:0.6 brightness:0.45 \\
        --networks perceptron conv --record r7_regimes         every noise and both networks

Feedback's weight, the weight of the trusted images in the rivals that see both, and the rate and length of fine-tuning
are each chosen per case by the mean accuracy on the validation images, for every arm alike; test accuracy is reported.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.experiments import finetuning, gold
from benchmarks.experiments.common import CONFIGS, options, parallel, record, row, tell
from benchmarks.records import Row
from fastmpl.experiment import Arm, Outcome, run_arms

CONFIG = CONFIGS / "fashion_mnist_noisy.toml"
WEIGHTS = (1.0, 3.0, 10.0, 30.0)  # of the feedback; 1 is the true gradient
TRUSTED_WEIGHTS = (0.02, 0.2, 1.0)  # 0.02: about each image's share
ALONE = {"method.name": "supervised", "feedback.kind": "off"}
SAMPLED = {"method.targets": "sampled"}
WEIGHTED: Mapping[str, Mapping[str, Any]] = {
    "MPL, exact": {},
    "MPL, exact, consistency": {"uda.weight": 1.0},
    "MPL, per example": {**SAMPLED, "feedback.kind": "per_example"},
    "MPL, scalar": {**SAMPLED, "feedback.kind": "scalar"},
    "MPL, flipped": {"feedback.control": "flipped"},
}
BOTH: Mapping[str, str] = {"noisy and trusted": "identity", "gold loss correction": "gold"}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "perceptron": {},
    "conv": {
        **{
            f"{role}.{key}": value
            for role in ("teacher", "student")
            for key, value in (("model", "conv"), ("width", 64))
        },
        "data.flip": True,
        "data.shift": 0.125,
        "data.cutout": 0.25,
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
    """An arm at one setting of its weight, its runs (one a seed) and what was found of them."""

    arm: str
    weight: float | None
    runs: Arm
    outcomes: list[Outcome]


def mpl_arms(case: Case, common: Mapping[str, Any], weights: Sequence[float]) -> list[tuple[str, float | None, Arm]]:
    """The arms that the trainer runs: the baselines, and every kind of feedback at every weight."""
    clean = {"data.labels": case.trusted, "data.trusted": 0, "data.noise": ("none", 0.0)}  # the same images, see split
    few = {"data.batch_labelled": min(64, case.trusted)}
    base = {
        **common,
        **NETWORKS[case.network],
        "data.noise": (case.kind, case.rate),
        "data.trusted": case.trusted,
        "data.batch_trusted": min(64, case.trusted),
    }
    found: list[tuple[str, float | None, Arm]] = [
        ("noisy", None, Arm(case.slug("noisy"), CONFIG, {**base, **ALONE})),
        (
            "trusted",
            None,
            Arm(case.slug("trusted"), CONFIG, {**base, **ALONE, **clean, **few, "data.batch_trusted": 0}),
        ),
        ("MPL, off", None, Arm(case.slug("off"), CONFIG, {**base, "feedback.kind": "off"})),
    ]
    for name, changes in WEIGHTED.items():
        for weight in weights:
            settings = {**base, **changes, "feedback.weight": weight}
            found.append((name, weight, Arm(case.slug(name, weight), CONFIG, settings)))
    return found


def rival_tasks(case: Case, noisy: Arm, seeds: int, folder: Path) -> list[tuple[str, float, Arm, list[gold.Task]]]:
    """Training on both kinds of labels, at every weight of the trusted ones."""
    found = []
    for name, correction in BOTH.items():
        for weight in TRUSTED_WEIGHTS:
            arm = noisy._replace(name=case.slug(name, weight))
            tasks = [
                gold.Task(arm.of(seed, folder), folder / f"{noisy.name}-{seed}", correction, weight)  # type: ignore[arg-type]
                for seed in range(seeds)
            ]
            found.append((name, weight, arm, tasks))
    return found


def _last(outcome: Outcome) -> dict[str, float]:
    last: dict[str, float] = outcome["last"].get("average") or outcome["last"]["student"]
    return last


def chosen(case: Case, candidates: Sequence[Candidate]) -> list[Row]:
    """The rows of the arm's best weight: by the mean over seeds of the validation accuracy at the last step."""
    best = max(candidates, key=lambda c: sum(_last(o)["validation"] for o in c.outcomes))
    return [
        row(
            str(case), best.arm, seed, _last(o)["test"], validation=_percent(_last(o)["validation"]), weight=best.weight
        )
        for seed, o in enumerate(best.outcomes)
    ]


def chosen_finetuned(
    case: Case, candidates: Sequence[Candidate], tuned: Mapping[str, Sequence[Sequence[finetuning.Tuned]]]
) -> list[Row]:
    """As `chosen`, over weights, rates and lengths of the fine-tuning."""
    settings = [
        (candidate, [of_seed[place] for of_seed in tuned[candidate.runs.name]])
        for candidate in candidates
        for place in range(len(tuned[candidate.runs.name][0]))
    ]
    best, found = max(settings, key=lambda each: sum(t.validation for t in each[1]))
    name = f"{best.arm}, fine-tuned"
    return [
        row(
            str(case),
            name,
            seed,
            t.test,
            validation=_percent(t.validation),
            weight=best.weight,
            rate=t.rate,
            finetuned_steps=t.steps,
        )
        for seed, t in enumerate(found)
    ]


def _percent(share: float) -> float:
    return round(100 * share, 3)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("r7", __doc__.splitlines()[0], steps=2000)
    parser.add_argument("--noises", nargs="+", default=["pair:0.45"], help="KIND:RATE")
    parser.add_argument("--trusted", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["perceptron"])
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    parser.add_argument("--finetune-steps", type=int, nargs="+", default=list(finetuning.LENGTHS))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    noises = [(kind, float(rate)) for kind, rate in (text.split(":") for text in asked.noises)]
    cases = [Case(*noise, trusted, net) for net in asked.networks for noise in noises for trusted in asked.trusted]
    rhythm = {"run.evaluate_every": max(asked.steps // 4, 1), "run.checkpoint_every": asked.steps}
    common = {"run.steps": asked.steps, **rhythm}

    planned = {case: mpl_arms(case, common, asked.weights) for case in cases}
    every = [arm for of_case in planned.values() for _, _, arm in of_case]
    outcomes = run_arms(every, asked.seeds, asked.output, tell, asked.jobs)
    candidates = {
        case: [Candidate(name, weight, arm, outcomes[arm.name]) for name, weight, arm in of_case]
        for case, of_case in planned.items()
    }

    for case in cases:
        noisy = next(arm for name, _, arm in planned[case] if name == "noisy")
        rivals = rival_tasks(case, noisy, asked.seeds, asked.output)
        done = iter(parallel(gold.trained, [task for *_, tasks in rivals for task in tasks], asked.jobs))
        for name, weight, arm, tasks in rivals:
            candidates[case].append(Candidate(name, weight, arm, [next(done) for _ in tasks]))
        tell(f"{case}: rivals trained")

    rows: list[Row] = []
    for case in cases:
        with_trusted = [c for c in candidates[case] if c.arm != "trusted"]
        tasks = [
            finetuning.Task(c.runs.of(seed, asked.output), lengths=asked.finetune_steps)
            for c in with_trusted
            for seed in range(asked.seeds)
        ]
        grid = iter(parallel(finetuning.finetuned, tasks, asked.jobs))
        tuned = {c.runs.name: [next(grid) for _ in range(asked.seeds)] for c in with_trusted}
        tell(f"{case}: fine-tuned")
        for name in dict.fromkeys(c.arm for c in candidates[case]):
            same = [c for c in candidates[case] if c.arm == name]
            rows += chosen(case, same)
            if name != "trusted":
                rows += chosen_finetuned(case, same, tuned)
    record(asked, rows, baseline="MPL, exact, fine-tuned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
