"""The pseudo labels of a run by class: how sure they are, how many count, how many are right."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from fastmpl.report.confusion_chart import shorten
from fastmpl.report.drawing import COLOUR, Chart, Key, draw, percent_axis
from fastmpl.telemetry.predictions import LabelSample

MOST_CLASSES: Final = 20


class LabelledClass(NamedTuple):
    """The labels that name one class; shares in [0, 1], NaN where they are not known or not asked for."""

    name: str
    images: int
    confidence: float
    coverage: float
    right: float


def labelled_classes(sample: LabelSample, classes: tuple[str, ...]) -> list[LabelledClass]:
    """A row for each class that was given as a label, the least sure first."""
    found = []
    for number in np.unique(sample.label):
        mine = sample.label == number
        sure, known = sample.confidence[mine].astype(float), sample.truth[mine] >= 0
        right = float((sample.truth[mine] == number)[known].mean()) if known.any() else math.nan
        coverage = float((sure >= sample.threshold).mean()) if sample.threshold > 0 else math.nan
        found.append(LabelledClass(classes[number], int(mine.sum()), float(sure.mean()), coverage, right))
    return sorted(found, key=lambda row: (row.confidence, row.name))


def never_given(sample: LabelSample, classes: tuple[str, ...]) -> list[str]:
    """The classes that no image of the sample was given: a sign of a collapse, where the sample is large enough."""
    given = set(np.unique(sample.label).tolist())
    return [name for number, name in enumerate(classes) if number not in given]


COLUMNS: Final = (("confidence", "teacher", "o"), ("coverage", "extra", "D"), ("right", "ink", "|"))
WORDS: Final = {"confidence": "mean confidence", "coverage": "confident enough to count", "right": "right"}


def draw_classes(rows: Sequence[LabelledClass]) -> Chart:
    """A class a row, its shares as marks."""
    shown = rows[:MOST_CLASSES]
    columns = [column for column in COLUMNS if any(math.isfinite(getattr(row, column[0])) for row in shown)]

    def paint(axes: Axes) -> None:
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_yticks(range(len(shown)), [shorten(row.name) for row in shown], color=COLOUR["ink"])
        axes.spines["bottom"].set_visible(False)
        percent_axis(axes.xaxis)
        for name, role, mark in columns:
            shares = [getattr(row, name) for row in shown]
            size = {"o": 5.0, "D": 3.6, "|": 9.0}[mark]
            axes.plot(
                shares, range(len(shown)), mark, color=COLOUR[role], markersize=size, markeredgewidth=1.4, clip_on=False
            )
        for place, row in enumerate(shown):
            axes.annotate(
                f"{row.images}", (1, place), (10, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", color=COLOUR["muted"],
            )  # fmt: skip

    title = "Labels by class"
    least = f" The {MOST_CLASSES} least sure of {len(rows)} classes." if len(shown) < len(rows) else ""
    caption = f"By the class that was given as the label; the number beside a row counts its images.{least}"
    return Chart(
        title, caption, [Key(WORDS[name], role) for name, role, _ in columns],
        draw(title, (3.6, 0.55 + 0.2 * len(shown)), paint),
    )  # fmt: skip
