"""`fastmpl analyse CONFIG`: the two analyses of the source paper (Pham et al. 2021, "Meta Pseudo Labels") on any data.

*Not label correction*: accuracy on the labelled and on the unlabelled training images over training, of the teacher, the
student, and a network trained on the labels alone under the same settings. *Not only a regulariser*: the distributions
that a teacher that learns gives to fixed images over training. Finished runs are not trained again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastmpl.config import Config, save
from fastmpl.paired_statistics import mean
from fastmpl.study.arms import Arm, run_arms
from fastmpl.telemetry.metrics_file import read_lines
from fastmpl.telemetry.training_analysis import (
    Targets,
    TrainingAccuracy,
    moments,
    read_accuracies,
    read_targets,
    share_flipped,
)

MEASURED: Final[dict[str, Any]] = {"run.analyse": True, "run.patience": 0, "finetune.steps": 0}
SUPERVISED: Final[dict[str, Any]] = {
    **MEASURED,
    "method.name": "supervised",
    "method.threshold": 0.0,
    "method.targets": "soft",
    "feedback.kind": "off",
    "feedback.control": "none",
    "feedback.every": 1,
    "data.store": "",
    "data.filter_store": "",
    "data.minimum_confidence": 0.0,
    "data.per_class": 0,
    "teacher.pretrained": "",
}


class AnalysedRun(NamedTuple):
    """What one run measured on its training images."""

    accuracies: Sequence[TrainingAccuracy]
    targets: Sequence[Targets]


class Analyses(NamedTuple):
    """The runs of the method, a seed each, and those trained on the labels alone."""

    method: list[AnalysedRun]
    supervised: list[AnalysedRun]
    steps: int


def build_arms(config: Config, path: Path) -> list[Arm]:
    """The method's arm and the supervised one, of `config`, which lies in `path`."""
    arms = [Arm("method", path, MEASURED)]
    return arms if config.method.name == "supervised" else [*arms, Arm("supervised", path, SUPERVISED)]


def analyse(config: Config, folder: Path, seeds: int, tell: Callable[[str], None], jobs: int | None = None) -> Analyses:
    """Trains what is needed in `folder`, or takes the finished runs. Raises what a run raises."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.toml"
    save(config, path)
    run_arms(build_arms(config, path), seeds, folder, tell, jobs)
    arms = [arm.name for arm in build_arms(config, path)]
    found = {
        name: [read_run(folder / f"{name}-{seed}") for seed in range(seeds) if name in arms]
        for name in ("method", "supervised")
    }
    return Analyses(found["method"], found["supervised"], config.run.steps)


def read_run(folder: Path) -> AnalysedRun:
    """What the run in `folder` measured; empty where it was not asked to."""
    lines = read_lines(folder)
    return AnalysedRun(read_accuracies(lines), read_targets(lines))


def average_curves(found: Analyses) -> dict[str, list[TrainingAccuracy]]:
    """Means over seeds by network: teacher, student (its average where it keeps one) and the supervised network."""
    curves = {"teacher": _mean_curve(found.method, "teacher"), "student": _student_curve(found.method)}
    curves["supervised"] = _student_curve(found.supervised)
    return {name: rows for name, rows in curves.items() if rows}


def _student_curve(runs: Sequence[AnalysedRun]) -> list[TrainingAccuracy]:
    return _mean_curve(runs, "average") or _mean_curve(runs, "student")


def _mean_curve(runs: Sequence[AnalysedRun], network: str) -> list[TrainingAccuracy]:
    rows: dict[tuple[Any, ...], list[TrainingAccuracy]] = {}
    for run in runs:
        for row in run.accuracies:
            if row.network == network:
                rows.setdefault((row.step, row.images), []).append(row)
    return [of[0]._replace(accuracy=mean([row.accuracy for row in of])) for of in rows.values() if len(of) == len(runs)]


class Numbers(NamedTuple):
    """What the distributions of one run did: shares of the images in [0, 1], and mean entropies in nats at the moments."""

    flipped: float  # the likeliest class ever changed
    flipped_late: float  # changed after the first quarter
    entropies: list[float]


def numbers_of(targets: Sequence[Targets], steps: int) -> Numbers:
    """The numbers of one run of `steps` that ended."""
    at = {found.step: found.entropy for found in targets}
    kept = moments(steps)
    return Numbers(share_flipped(targets), share_flipped(targets, kept[1]), [at[step] for step in kept if step in at])


def describe(found: Analyses) -> list[str]:
    """The numbers in words, for a terminal."""
    lines = ["accuracy on the training images at the end, %            labelled  unlabelled"]
    for name, rows in average_curves(found).items():
        last = {row.images: f"{100 * row.accuracy:.1f}" for row in rows if row.step == max(r.step for r in rows)}
        lines.append(f"  {name:50} {last.get('labelled', '-'):>12} {last.get('unlabelled', '-'):>11}")
    measured = [numbers_of(run.targets, found.steps) for run in found.method if run.targets]
    if measured:
        flipped, late = (100 * mean([getattr(one, name) for one in measured]) for name in ("flipped", "flipped_late"))
        entropies = [f"{mean(list(at)):.2f}" for at in zip(*(one.entropies for one in measured), strict=False)]
        lines += [
            "the teacher's distributions of fixed unlabelled images",
            f"  images whose likeliest class ever changes: {flipped:.1f} %; after a quarter of training: {late:.1f} %",
            f"  mean entropy at 0, 25, 50, 75 and 100 % of training: {', '.join(entropies)} nats",
        ]
    return lines


def run(config: Config, folder: Path, seeds: int, jobs: int | None = None) -> Path:
    """Trains what is not trained yet, prints the numbers and writes the page; gives its path."""
    from fastmpl import report  # matplotlib takes a second to import

    found = analyse(config, folder, seeds, lambda line: print(line, flush=True), jobs)
    lines = describe(found)
    print("\n" + "\n".join(lines))
    said = {"curves": {name: [row._asdict() for row in rows] for name, rows in average_curves(found).items()}}
    numbers = [numbers_of(one.targets, found.steps)._asdict() for one in found.method if one.targets]
    (folder / "analyses.json").write_text(json.dumps(said | {"targets": numbers}, indent=1) + "\n")
    summary = f"{config.method.name} on {config.data.source}, {config.run.steps:,} steps, {seeds} seeds."
    return report.write_analyses(folder / "report.html", summary, average_curves(found), found.method[0].targets, lines)
