"""Does the feedback do anything, on this data? The same configuration with its feedback off, on, shuffled and flipped.

Every arm of a seed sees the same split, images, views, draws and initial weights, so that a paired test over seeds asks
about the feedback alone. `fastmpl ablate` prints the table and writes it with its figure to report.html; finished runs
are not trained again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmpl.config import Config, ConfigError, FeedbackKind, save
from fastmpl.config.rules import IMPOSSIBLE
from fastmpl.paired_statistics import Interval, mean, paired_interval, paired_median, paired_p, standard_error
from fastmpl.study.arms import Arm, Outcome, run_arms
from fastmpl.study.ways import Way, build_ways

OFF = "off"
KINDS: tuple[FeedbackKind, ...] = ("exact", "per_example", "scalar")
# keys of one kind that another refuses
_OF_SCALAR: dict[str, Any] = {"feedback.baseline": 0.0}
_OF_TANGENT: dict[str, Any] = {"feedback.tangent": "jvp", "feedback.depth": 0}
_OF_ALL: dict[str, Any] = {"feedback.every": 1}


class AblationRow(NamedTuple):
    """An arm's test accuracies, a share per seed, and their paired difference from the baseline, the first arm."""

    name: str
    accuracies: list[float]
    difference: Interval | None
    p: float


def build_arms(config: Config, path: Path) -> list[Arm]:
    """The arms of `config`, which lies in `path`. Raises ConfigError for a method without feedback."""
    if config.method.name not in ("mpl", "reduced_mpl"):
        raise ConfigError(
            f'fastmpl ablate switches the feedback of method.name = "mpl" or "reduced_mpl", and "{config.method.name}" '
            "has none."
        )
    legal = [kind for kind in KINDS if (config.method.targets, kind) not in IMPOSSIBLE]
    chosen = config.feedback.kind if config.feedback.kind in legal else legal[0]

    def arm(name: str, kind: FeedbackKind, control: str = "none") -> Arm:
        changes: dict[str, Any] = {"feedback.kind": kind, "feedback.control": control}
        if kind != config.feedback.kind:
            changes |= {"off": _OF_ALL, "scalar": _OF_TANGENT}.get(kind, _OF_SCALAR)
        return Arm(name, path, changes)

    return [
        arm(OFF, "off"),
        *(arm(kind, kind) for kind in legal),
        arm("shuffled", chosen, "shuffled"),
        arm("flipped", chosen, "flipped"),
    ]


def ablate(
    config: Config,
    folder: Path,
    seeds: int,
    tell: Callable[[str], None],
    jobs: int | None = None,
    ways: Sequence[Way] = (),
) -> dict[str, list[AblationRow]]:
    """Trains the arms in `folder`, or takes the finished ones; the rows by table. Raises what a run raises.

    ways: methods to compare, the first with all others; the kinds of feedback if empty.
    """
    if seeds < 2:
        raise ConfigError(f"--seeds {seeds}: a paired difference needs at least 2 seeds.")
    path = folder / "config.toml"
    chosen = build_ways(config, path, ways) if ways else build_arms(config, path)
    folder.mkdir(parents=True, exist_ok=True)
    save(config, path)
    outcomes = run_arms(chosen, seeds, folder, tell, jobs)
    tables = {"Test accuracy": _compare_with_first(outcomes, _last_accuracy)}
    finetuned = {name: found for name, found in outcomes.items() if found[0]["finetuned"]}
    if len(finetuned) > 1:
        tables["After fine-tuning"] = _compare_with_first(finetuned, _finetuned_accuracy)
    said = {title: [row._asdict() for row in rows] for title, rows in tables.items()}
    (folder / "ablation.json").write_text(json.dumps(said, indent=1) + "\n")
    return tables


def _last_accuracy(outcome: Outcome) -> float:
    """The student's average at the last step, or the student where it keeps none."""
    last = outcome["last"]
    return float(last.get("average", last["student"])["test"])


def _finetuned_accuracy(outcome: Outcome) -> float:
    return float(outcome["finetuned"]["test"])


def _compare_with_first(outcomes: dict[str, list[Outcome]], read: Callable[[Outcome], float]) -> list[AblationRow]:
    first = next(iter(outcomes))
    off = [read(outcome) for outcome in outcomes[first]]
    rows = []
    for name, of_seeds in outcomes.items():
        mine = [read(outcome) for outcome in of_seeds]
        compared = name != first
        difference = paired_interval(mine, off) if compared else None
        rows.append(AblationRow(name, mine, difference, paired_p(mine, off) if compared else 1.0))
    return rows


def format_table(title: str, rows: Sequence[AblationRow]) -> str:
    """A table for a terminal of 80 columns, in percent and points."""
    baseline = rows[0].name
    head = "feedback" if baseline == OFF else "arm"
    width = max(len(head), *(len(row.name) for row in rows))
    difference = f"minus {baseline} [95 % interval]"
    lines = [f"{title}, %", "", f"{head:{width}}    mean ± s.e.   {difference:25}    p"]
    for row in rows:
        percent = [100 * x for x in row.accuracies]
        line = f"{row.name:{width}}    {mean(percent):4.1f} ± {standard_error(percent):4.2f}"
        if row.difference is not None:
            centre, low, high = (100 * x for x in row.difference)
            line += f"   {centre:+6.2f} [{low:+6.2f}, {high:+6.2f}]   {row.p:.3f}"
        lines.append(line)
    return "\n".join(lines)


def verdict(rows: Sequence[AblationRow]) -> str:
    """What the table says, in a sentence: of feedback, or which way of using the labels wins."""
    if rows[0].name != OFF:
        return _winner(rows)
    on = next(row for row in rows if row.name in KINDS)
    assert on.difference is not None
    centre, low, high = (100 * x for x in on.difference)
    interval = (
        f"{centre:+.1f} points, 95 % interval [{low:+.1f}, {high:+.1f}], p = {on.p:.2g}, n = {len(on.accuracies)}"
    )
    if low <= 0 <= high:
        return f"On this data, {on.name} feedback cannot be told from none ({interval}). {_median_sentence(rows, on)}"
    return (
        f"On this data, {on.name} feedback {'helps' if centre > 0 else 'harms'} ({interval}). "
        f"{_median_sentence(rows, on)}"
    )


def _winner(rows: Sequence[AblationRow]) -> str:
    """The best mean, and whether the baseline can be told from it."""
    best = max(rows, key=lambda row: mean(row.accuracies))
    first = rows[0]
    if best is first:
        return f"On this data no arm has a better mean than {first.name}."
    assert best.difference is not None
    centre, low, high = (100 * x for x in best.difference)
    told = "cannot be told from" if low <= 0 <= high else "beats"
    return (
        f"On this data {best.name} has the best mean, and {told} {first.name} ({centre:+.1f} points, 95 % interval "
        f"[{low:+.1f}, {high:+.1f}], p = {best.p:.2g}, n = {len(best.accuracies)})."
    )


def _median_sentence(rows: Sequence[AblationRow], on: AblationRow) -> str:
    """The interval that holds whatever the differences' distribution: the mean's is too narrow where some runs collapse."""
    off = next(row for row in rows if row.name == OFF)
    centre, low, high, confidence = paired_median(on.accuracies, off.accuracies)
    return (
        f"The median difference, which one collapsed run does not move, is {100 * centre:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}] at {100 * confidence:.3g} %."
    )


def run(config: Config, folder: Path, seeds: int, jobs: int | None = None, ways: Sequence[Way] = ()) -> Path:
    """Trains what is not trained yet, prints the tables and writes the report; gives its path."""
    from fastmpl import report  # matplotlib takes a second to import

    tables = ablate(config, folder, seeds, lambda line: print(line, flush=True), jobs, ways)
    for title, rows in tables.items():
        print(f"\n{format_table(title, rows)}\n\n{verdict(rows)}")
    compared = [
        report.Comparison(
            title,
            f"{config.method.name} on {config.data.source}, {config.run.steps:,} steps, {seeds} seeds; the last step.",
            [report.ArmResult(row.name, row.accuracies, f"p = {row.p:.3f}" if row.difference else "") for row in rows],
            verdict(rows),
            against=rows[0].name,
        )
        for title, rows in tables.items()
    ]
    title = f"{'Ways to use few labels' if ways else 'Feedback'} on {config.data.source}"
    return report.write_comparison(folder / "report.html", title, compared)
