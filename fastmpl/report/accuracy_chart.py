"""The first picture of a report: the accuracy of each network over the steps, on each split."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from fastmpl.report.drawing import COLOUR, DASHES, Chart, Key, draw, percent_axis, step_axis
from fastmpl.report.reading import NETWORKS, SPLITS, RunRecord
from fastmpl.telemetry.metrics_file import Evaluation


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved up as little as keeps them `gap` apart, so that labels do not cover each other."""
    moved = list(heights)
    floor = -math.inf
    for place in sorted(range(len(heights)), key=lambda i: heights[i]):
        moved[place] = max(heights[place], floor)
        floor = moved[place] + gap
    return moved


def _finite_evaluations(run: RunRecord) -> list[Evaluation]:
    return [row for row in run.evaluations if math.isfinite(row.accuracy)]


def _draw_ring(axes: Axes, step: int, accuracy: float) -> None:
    axes.plot(
        [step], [accuracy], marker="o", markersize=9, fillstyle="none", markeredgewidth=1.2,
        color=COLOUR["ink"], clip_on=False,
    )  # fmt: skip


def _draw_accuracy(run: RunRecord, split: str, limits: tuple[float, float]) -> Chart:
    rows = sorted((row for row in _finite_evaluations(run) if row.split == split), key=lambda row: row.step)
    curves = {name: [(row.step, row.accuracy) for row in rows if row.network == name] for name in NETWORKS}
    curves = {name: points for name, points in curves.items() if points}
    selected = run.selected if run.selected and split == "validation" else None
    trained = max((row.step for row in rows if row.phase == "train"), default=rows[-1].step)

    def paint(axes: Axes) -> None:
        axes.set_ylim(*limits)
        percent_axis(axes.yaxis)
        for name, points in curves.items():
            axes.plot(
                *zip(*points, strict=True),
                color=COLOUR[name],
                linestyle=DASHES.get(name, "solid"),
                marker="o",
                markersize=2.6,
            )
        if selected and selected.step is not None:
            _draw_ring(axes, selected.step, selected.validation)
        if rows[-1].step > trained:
            axes.axvline(trained, color=COLOUR["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
            axes.text(trained, limits[0], "fine-tuning ", ha="right", va="bottom", color=COLOUR["muted"])
        ends = spread([points[-1][1] for points in curves.values()], gap=(limits[1] - limits[0]) * 0.065)
        last = rows[-1].step
        for (name, points), height in zip(curves.items(), ends, strict=True):
            axes.annotate(
                f"{100 * points[-1][1]:.1f} %", (last, height), (6, 0), textcoords="offset points", va="center",
                color=COLOUR[name], fontweight="bold", annotation_clip=False,
            )  # fmt: skip
        step_axis(axes)

    title = f"Accuracy on {split} images"
    caption = "Ring: the network and step chosen on these images, never on the test images." if selected else ""
    return Chart(title, caption, [Key(name, name) for name in curves], draw(title, (4.0, 2.3), paint))


def draw_accuracies(run: RunRecord) -> list[Chart]:
    """One for each split that was evaluated, on the same scale."""
    shown = _finite_evaluations(run)
    if not shown:
        return []
    low, high = (bound(row.accuracy for row in shown) for bound in (min, max))
    room = max(high - low, 0.02) * 0.08
    limits = (max(low - room, -0.01), min(high + room, 1.01))
    splits = [split for split in SPLITS if any(row.split == split for row in shown)]
    return [_draw_accuracy(run, split, limits) for split in splits]
