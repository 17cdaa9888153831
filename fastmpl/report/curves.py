"""A run's curves: accuracy of each network on each split, and what the steps measured.

Each picture asks one question. What was zero throughout (a method without feedback) is not drawn.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from fastmpl.metrics import Evaluation
from fastmpl.report.drawing import COLOUR, DASHES, Key, Picture, draw
from fastmpl.report.reading import NETWORKS, SPLITS, Run

MOST: Final = 300  # points of a curve; more are averaged in bins, because nobody sees them and every one is in the file
PERCENT: Final = PercentFormatter(1.0, decimals=0, symbol=" %")


class Curve(NamedTuple):
    """One column of the metrics, in the colour of `role`."""

    label: str
    role: str
    column: str


class Question(NamedTuple):
    """A picture of what the steps measured."""

    title: str
    caption: str
    curves: Sequence[Curve]
    share: bool = False  # shown in percent
    logarithmic: bool = False
    zero: bool = False  # zero means something


QUESTIONS: Final = (
    Question(
        "Losses",
        "Cross entropy in nats; consistency is between two views of an unlabelled image.",
        (
            Curve("student, on the teacher's labels", "student", "student_loss"),
            Curve("on true labels", "teacher", "supervised_loss"),
            Curve("consistency", "extra", "pseudo_loss"),
        ),
    ),
    Question(
        "Feedback",
        "What an update of the student took off its loss on true labels. Above zero, the teacher's labels helped.",
        (Curve("feedback", "average", "feedback"),),
        zero=True,
    ),
    Question(
        "Size of the feedback",
        "Root mean square of the credit that each label got. Near zero, the teacher learns nothing from the student.",
        (Curve("feedback, root mean square", "average", "feedback_size"),),
    ),
    Question(
        "The teacher's labels",
        "How sure they are, and the share of images whose label is sure enough to count.",
        (Curve("mean confidence", "teacher", "confidence"), Curve("coverage", "extra", "coverage")),
        share=True,
    ),
    Question(
        "Learning rates",
        "",
        (Curve("student", "student", "student_rate"), Curve("teacher", "teacher", "teacher_rate")),
    ),
    Question(
        "Gradient norms",
        "Before any clipping.",
        (Curve("student", "student", "student_norm"), Curve("teacher", "teacher", "teacher_norm")),
        logarithmic=True,
    ),
    Question(
        "Skipped updates",
        "Updates not taken because their gradient was not finite, in each interval of logging.",
        (Curve("skipped", "average", "skipped"),),
    ),
    Question("Speed", "Images a second, of both batches.", (Curve("images/s", "extra", "images_per_second"),)),
)


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = MOST) -> tuple[list[float], list[float]]:
    """At most `most` points: means of bins of equal counts. A bin with a value that is not finite is a gap."""
    size = math.ceil(len(xs) / most) or 1
    bins = [slice(first, first + size) for first in range(0, len(xs), size)]
    return [sum(xs[b]) / len(xs[b]) for b in bins], [sum(ys[b]) / len(ys[b]) for b in bins]


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved up as little as keeps them `gap` apart, so that labels do not cover each other."""
    moved = list(heights)
    floor = -math.inf
    for place in sorted(range(len(heights)), key=lambda i: heights[i]):
        moved[place] = max(heights[place], floor)
        floor = moved[place] + gap
    return moved


def _steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.02)
    axes.set_xlabel("step", color=COLOUR["muted"])


def _measured(run: Run) -> list[Evaluation]:
    return [row for row in run.evaluations if math.isfinite(row.accuracy)]


def accuracy_pictures(run: Run) -> list[Picture]:
    """One for each split that was evaluated, on the same scale."""
    shown = _measured(run)
    if not shown:
        return []
    low, high = (bound(row.accuracy for row in shown) for bound in (min, max))
    room = max(high - low, 0.02) * 0.08
    limits = (max(low - room, -0.01), min(high + room, 1.01))
    splits = [split for split in SPLITS if any(row.split == split for row in shown)]
    return [_accuracy(run, split, limits) for split in splits]


def _ring(axes: Axes, step: int, accuracy: float) -> None:
    axes.plot(
        [step], [accuracy], marker="o", markersize=9, fillstyle="none", markeredgewidth=1.2,
        color=COLOUR["ink"], clip_on=False,
    )  # fmt: skip


def _accuracy(run: Run, split: str, limits: tuple[float, float]) -> Picture:
    rows = sorted((row for row in _measured(run) if row.split == split), key=lambda row: row.step)
    curves = {name: [(row.step, row.accuracy) for row in rows if row.network == name] for name in NETWORKS}
    curves = {name: points for name, points in curves.items() if points}
    selected = run.selected if run.selected and split == "validation" else None
    trained = max((row.step for row in rows if row.phase == "train"), default=rows[-1].step)

    def paint(axes: Axes) -> None:
        axes.set_ylim(*limits)
        axes.yaxis.set_major_formatter(PERCENT)
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), color=COLOUR[name], marker="o", markersize=2.6)
        if selected and selected.step is not None:
            _ring(axes, selected.step, selected.validation)
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
        _steps(axes)

    title = f"Accuracy on {split} images"
    caption = "Ring: the network and step chosen on these images, never on the test images." if selected else ""
    return Picture(title, caption, [Key(name, name) for name in curves], draw(title, (4.0, 2.3), paint))


def _drawn(run: Run, question: Question) -> list[Curve]:
    return [curve for curve in question.curves if any(v != 0 and math.isfinite(v) for v in run.train[curve.column])]


def _answer(run: Run, question: Question, curves: Sequence[Curve]) -> Picture:
    def paint(axes: Axes) -> None:
        for curve in curves:
            steps, values = thinned(run.train["step"], run.train[curve.column])
            positive = [value if value > 0 or not question.logarithmic else math.nan for value in values]
            line = DASHES.get(curve.role, "solid")
            axes.plot(steps, positive, color=COLOUR[curve.role], linestyle=line, marker="o" if len(steps) == 1 else "")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        if question.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if question.share:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PERCENT)
        if question.zero:
            axes.axhline(0, color=COLOUR["muted"], linewidth=0.8)
        _steps(axes)

    svg = draw(question.title, (3.6, 2.0), paint)
    return Picture(question.title, question.caption, [Key(curve.label, curve.role) for curve in curves], svg)


def step_pictures(run: Run) -> list[Picture]:
    """One for each question that the run has an answer to."""
    answers = [(question, _drawn(run, question)) for question in QUESTIONS]
    return [_answer(run, question, curves) for question, curves in answers if curves]


def unanswered(run: Run) -> list[str]:
    """The titles of the questions that `step_pictures` leaves out: zero throughout, or not measured."""
    return [question.title for question in QUESTIONS if not _drawn(run, question)]
