"""Which classes are taken for which: a matrix of counts, and the pairs that are confused most often."""

from typing import Final, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fastmpl.report.drawing import COLOUR, Chart, Key, draw
from fastmpl.telemetry.predictions import Ints, Predictions

MOST_CLASSES: Final = 16  # of the picture: more cannot be read
MOST_PAIRS: Final = 10
LONGEST: Final = 14  # letters of a name in the picture


class Pair(NamedTuple):
    """Images of class `true` that were taken for `taken_for`. share: of all images of class `true`, in [0, 1]."""

    true: str
    taken_for: str
    times: int
    share: float


def worst_pairs(found: Predictions, classes: tuple[str, ...]) -> list[Pair]:
    """The pairs with the most errors, and of those with equally many the larger share first."""
    images = np.bincount(found.truth, minlength=len(classes))
    wrong = ~found.right
    codes, times = np.unique(found.truth[wrong] * len(classes) + found.predicted[wrong], return_counts=True)
    pairs = [
        Pair(classes[true], classes[taken], int(count), float(count / images[true]))
        for (true, taken), count in zip((divmod(int(code), len(classes)) for code in codes), times, strict=True)
    ]
    return sorted(pairs, key=lambda pair: (-pair.times, -pair.share, pair.true))[:MOST_PAIRS]


def confusion(found: Predictions, chosen: Ints) -> Ints:
    """Counts [k, k] by true class (rows) and predicted class, of the classes `chosen` [k] in their order."""
    largest = max(int(found.truth.max(initial=0)), int(found.predicted.max(initial=0)), int(chosen.max(initial=0)))
    place = np.full(largest + 1, -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    rows, columns = place[found.truth], place[found.predicted]
    inside = (rows >= 0) & (columns >= 0)
    counts = np.bincount(rows[inside] * len(chosen) + columns[inside], minlength=len(chosen) ** 2)
    return counts.reshape(len(chosen), len(chosen)).astype(np.int64)


def classes_to_draw(found: Predictions, count: int) -> Ints:
    """The classes of the picture, in order: all, or those that take part in the most errors."""
    if count <= MOST_CLASSES:
        return np.arange(count)
    wrong = ~found.right
    errors = np.bincount(found.truth[wrong], minlength=count) + np.bincount(found.predicted[wrong], minlength=count)
    return np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])


def shorten(name: str) -> str:
    """A name of at most LONGEST letters."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _draw_cells(axes: Axes, counts: Ints, images: Ints) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = counts[row, column] / images[row]
        colour = COLOUR["student" if row == column else "average"]
        strength = 0.12 + 0.38 * share  # the darkest cell leaves its number readable
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=strength, linewidth=0))
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=COLOUR["ink"])


def draw_confusion(found: Predictions, classes: tuple[str, ...]) -> Chart:
    """The matrix as a picture: a row a true class, a column a predicted one."""
    chosen = classes_to_draw(found, len(classes))
    counts, images = confusion(found, chosen), np.bincount(found.truth, minlength=len(classes))[chosen]
    names = [shorten(classes[number]) for number in chosen]

    def paint(axes: Axes) -> None:
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.xaxis.set_ticks_position("top")
        axes.xaxis.set_label_position("top")
        axes.tick_params(length=0)
        upright = max(map(len, names)) <= 3
        axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90, color=COLOUR["ink"])
        axes.set_yticks(range(len(names)), names, color=COLOUR["ink"])
        axes.set_xlabel("taken for", color=COLOUR["muted"])
        axes.set_ylabel("true class", color=COLOUR["muted"])
        for place in range(len(names) + 1):
            axes.axhline(place - 0.5, color=COLOUR["grid"], linewidth=0.5)
            axes.axvline(place - 0.5, color=COLOUR["grid"], linewidth=0.5)
        _draw_cells(axes, counts, images)

    title = "Which class is taken for which"
    some = f" The {MOST_CLASSES} of {len(classes)} classes with the most errors." if len(chosen) < len(classes) else ""
    caption = (
        f"Number of images. A row is a true class; the fuller the colour, the larger the share of its images.{some}"
    )
    side = min(max(3.6, 0.25 * len(names) + 1.1), 4.8)
    svg: Markup = draw(title, (side, side), paint)
    return Chart(title, caption, [Key("right", "student"), Key("wrong", "average")], svg)
