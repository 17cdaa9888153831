"""What the steps of a run measured, over its steps.

Each picture asks one question. What was zero throughout (a method without feedback) is not drawn. Leaves out the
accuracies (`accuracy_chart`).
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fastmpl.report.drawing import COLOUR, DASHES, Chart, Key, draw, percent_axis, step_axis
from fastmpl.report.reading import RunRecord

MOST: Final = 300  # points of a curve; more are averaged in bins, because nobody sees them and every one is in the file


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
        "Feedback beside the supervised loss",
        "Size of the feedback's gradient over that of the supervised one, at the teacher's logits. At 1 both pull equally.",
        (Curve("ratio", "average", "feedback_ratio"),),
        logarithmic=True,
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


def average_in_bins(xs: Sequence[float], ys: Sequence[float], most: int = MOST) -> tuple[list[float], list[float]]:
    """At most `most` points: means of bins of equal counts. A bin with a value that is not finite is a gap."""
    size = math.ceil(len(xs) / most) or 1
    bins = [slice(first, first + size) for first in range(0, len(xs), size)]
    return [sum(xs[b]) / len(xs[b]) for b in bins], [sum(ys[b]) / len(ys[b]) for b in bins]


def _curves_with_values(run: RunRecord, question: Question) -> list[Curve]:
    return [curve for curve in question.curves if any(v != 0 and math.isfinite(v) for v in run.train[curve.column])]


def _draw_question(run: RunRecord, question: Question, curves: Sequence[Curve]) -> Chart:
    def paint(axes: Axes) -> None:
        for curve in curves:
            steps, values = average_in_bins(run.train["step"], run.train[curve.column])
            positive = [value if value > 0 or not question.logarithmic else math.nan for value in values]
            line = DASHES.get(curve.role, "solid") if len(curves) > 1 else "solid"
            axes.plot(steps, positive, color=COLOUR[curve.role], linestyle=line, marker="o" if len(steps) == 1 else "")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        if question.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if question.share:
            axes.set_ylim(-0.02, 1.02)
            percent_axis(axes.yaxis)
        if question.zero:
            axes.axhline(0, color=COLOUR["muted"], linewidth=0.8)
        step_axis(axes)

    svg = draw(question.title, (3.6, 2.0), paint)
    legend = [Key(curve.label, curve.role) for curve in curves] if len(curves) > 1 else []
    return Chart(question.title, question.caption, legend, svg)


def draw_questions(run: RunRecord) -> list[Chart]:
    """One for each question that the run has an answer to."""
    answers = [(question, _curves_with_values(run, question)) for question in QUESTIONS]
    return [_draw_question(run, question, curves) for question, curves in answers if curves]


def titles_left_out(run: RunRecord) -> list[str]:
    """The titles of the questions that `draw_questions` leaves out: zero throughout, or not measured."""
    return [question.title for question in QUESTIONS if not _curves_with_values(run, question)]
