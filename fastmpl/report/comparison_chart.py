"""Arms of an experiment beside each other: every seed a dot, the mean a bar, the difference with its interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes

from fastmpl.paired_statistics import Interval, mean, paired_interval, standard_error
from fastmpl.report.drawing import COLOUR, draw, percent_axis


class ArmResult(NamedTuple):
    """One way to train; accuracies are shares in [0, 1], one a seed.

    Without `seeds` the seeds are the same in every arm, in the same order; with them, arms are paired by their common ones.
    """

    name: str
    accuracies: Sequence[float]
    note: str = ""
    seeds: Sequence[int] = ()


class Comparison(NamedTuple):
    """Arms that differ in one thing and share everything else."""

    title: str
    caption: str
    arms: Sequence[ArmResult]
    difference: str  # what it shows, in a sentence
    against: str = ""  # the arm that the others are compared with; the first if not named
    settings: Sequence[tuple[str, Sequence[str]]] = ()  # keys in which the arms differ, with a value for each arm


class ComparisonRow(NamedTuple):
    """An arm as its table shows it; `difference` is None for the arm compared with, and without common seeds."""

    arm: ArmResult
    mean: float
    standard_error: float
    difference: Interval | None


def baseline(table: Comparison) -> ArmResult:
    """The arm that the others are compared with. Raises ValueError if `against` names none."""
    if not table.against:
        return table.arms[0]
    for arm in table.arms:
        if arm.name == table.against:
            return arm
    raise ValueError(
        f"{table.title}: no arm is called {table.against!r}; there are {[arm.name for arm in table.arms]}."
    )


def _pairs(arm: ArmResult, base: ArmResult) -> list[tuple[float, float]]:
    """The accuracies of both arms, seed by seed; empty where they have no seed in common, or cannot be matched."""
    if arm.seeds and base.seeds:
        mine, other = (dict(zip(of.seeds, of.accuracies, strict=True)) for of in (arm, base))
        return [(mine[seed], other[seed]) for seed in sorted(mine.keys() & other.keys())]
    if len(arm.accuracies) != len(base.accuracies):
        return []
    return list(zip(arm.accuracies, base.accuracies, strict=True))


def rows(table: Comparison) -> list[ComparisonRow]:
    """What each arm's seeds say."""
    base = baseline(table)

    def difference(arm: ArmResult) -> Interval | None:
        if arm is base:
            return None
        pairs = _pairs(arm, base)
        return paired_interval(*zip(*pairs, strict=True)) if pairs else None

    return [
        ComparisonRow(arm, mean(arm.accuracies), standard_error(arm.accuracies), difference(arm)) for arm in table.arms
    ]


def dot_plot(table: Comparison, number: int) -> Markup:
    """An arm a row, its name above its dots; number: of the table in its page."""
    shown = rows(table)

    def paint(axes: Axes) -> None:
        axes.set_ylim(len(shown) - 0.4, -0.75)
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        percent_axis(axes.xaxis)
        axes.margins(x=0.06)
        for place, row in enumerate(shown):
            axes.axhline(place, color=COLOUR["grid"], linewidth=0.8, zorder=0)
            colour = COLOUR["muted"] if row.arm is baseline(table) else COLOUR["student"]
            axes.plot(
                row.arm.accuracies, [place] * len(row.arm.accuracies), "o", color=colour, alpha=0.45, markersize=6
            )
            axes.plot([row.mean] * 2, [place - 0.17, place + 0.17], color=colour, linewidth=2.6)
            axes.annotate(
                row.arm.name, (0, place), (0, 9), xycoords=("axes fraction", "data"), textcoords="offset points",
                color=COLOUR["ink"],
            )  # fmt: skip
            if math.isfinite(row.mean):
                axes.annotate(
                    f"{100 * row.mean:.1f} %", (1, place), (6, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", va="center", color=COLOUR["ink"], fontweight="bold",
                )  # fmt: skip

    return draw(f"{number}. {table.title}: accuracy of every seed", (3.7, 0.45 + 0.46 * len(shown)), paint)
