"""The two analyses of the source paper as pictures: accuracy on training images, and the teacher's distributions."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from matplotlib.axes import Axes

from fastmpl.report.drawing import COLOUR, DASHES, Chart, Key, draw, percent_axis, step_axis
from fastmpl.telemetry.training_analysis import Targets, TrainingAccuracy

ROLES: Final = {"student": "student", "average": "average", "teacher": "teacher", "supervised": "extra"}
MOST_CLASSES: Final = 10  # bars of a distribution: the likeliest at any of the moments
_SCHEMES: Final = re.compile(r":root \{(.*?)\}", re.DOTALL)  # the two sets of colours of the style sheet
Images = Literal["labelled", "unlabelled"]
Curves = Mapping[str, Sequence[TrainingAccuracy]]  # by the name in the legend, a key of ROLES


def curves_of_run(rows: Sequence[TrainingAccuracy]) -> Curves:
    """The rows of one run by network."""
    return {name: [row for row in rows if row.network == name] for name in ROLES}


def draw_training_accuracies(curves: Curves) -> list[Chart]:
    """A picture for labelled and one for unlabelled images, on the same scale."""
    kinds: tuple[Images, ...] = ("labelled", "unlabelled")
    found = [row.accuracy for rows in curves.values() for row in rows if math.isfinite(row.accuracy)]
    if not found:
        return []
    room = max(max(found) - min(found), 0.02) * 0.08
    limits = max(min(found) - room, -0.01), min(max(found) + room, 1.01)
    return [_draw_kind(curves, images, limits) for images in kinds if _has(curves, images)]


def _has(curves: Curves, images: Images) -> bool:
    return any(row.images == images for rows in curves.values() for row in rows)


def _draw_kind(curves: Curves, images: Images, limits: tuple[float, float]) -> Chart:
    points = {name: [(row.step, row.accuracy) for row in rows if row.images == images] for name, rows in curves.items()}
    points = {name: of for name, of in points.items() if of}

    def paint(axes: Axes) -> None:
        axes.set_ylim(*limits)
        percent_axis(axes.yaxis)
        for name, of in points.items():
            role = ROLES[name]
            axes.plot(*zip(*of, strict=True), color=COLOUR[role], linestyle=DASHES.get(role, "solid"))
        step_axis(axes)

    title = f"Accuracy on the {images} training images"
    captions = {
        "labelled": "A network can learn these by heart.",
        "unlabelled": "The teacher's labels, which the student learns, are of these.",
    }
    return Chart(title, captions[images], [Key(name, ROLES[name]) for name in points], draw(title, (4.0, 2.3), paint))


def draw_targets(targets: Sequence[Targets], steps: int) -> Chart | None:
    """The distributions of the fixed images at each moment: an image a row, a moment a column; None if none was kept."""
    kept = [found for found in targets if found.probabilities]
    if not kept:
        return None
    images, classes = len(kept[0].probabilities), _classes_to_show(kept)
    width = len(classes) + 2.0

    def paint(axes: Axes) -> None:
        for column, found in enumerate(kept):
            for image, shares in enumerate(found.probabilities):
                base, truth = images - 1 - image, found.truth[image] if image < len(found.truth) else -1
                for place, number in enumerate(classes):
                    role = "student" if number == truth else "teacher"
                    height = 0.85 * shares[number]
                    if height > 0.01:  # what cannot be seen is not drawn
                        axes.bar(column * width + place, height, 0.9, base, color=COLOUR[role], linewidth=0)
        axes.set_xticks([column * width + (len(classes) - 1) / 2 for column in range(len(kept))])
        axes.set_xticklabels([f"{100 * found.step / max(steps, 1):.0f} %" for found in kept])
        axes.set_yticks(range(images))
        named = [_truth_of(kept[0], image) for image in range(images)]
        axes.set_yticklabels(named[::-1], va="bottom")
        axes.grid(axis="x", visible=False)
        axes.set_ylim(-0.05, images)
        axes.set_xlim(-1, len(kept) * width - 1)
        axes.set_xlabel("share of training", color=COLOUR["muted"])

    title = "The teacher's distributions of fixed images"
    caption = "A row is one unlabelled image, named by its true class where that is known; a bar is a class."
    keys = [Key("true class", "student"), Key("another class", "teacher")]
    return Chart(title, caption, keys, draw(title, (6.4, 0.36 * images + 0.6), paint))


def _classes_to_show(kept: Sequence[Targets]) -> list[int]:
    """The classes that are likeliest for any image at any moment, in their order; those that are true first of all."""
    count = len(kept[0].probabilities[0])
    peak = [max(shares[number] for found in kept for shares in found.probabilities) for number in range(count)]
    peak = [value + (number in kept[0].truth) for number, value in enumerate(peak)]
    return sorted(sorted(range(count), key=lambda number: -peak[number])[:MOST_CLASSES])


def _truth_of(found: Targets, image: int) -> str:
    truth = found.truth[image] if image < len(found.truth) else -1
    name = found.classes[truth] if 0 <= truth < len(found.classes) else ""
    return name if len(name) <= 16 else f"{name[:15]}\N{HORIZONTAL ELLIPSIS}"


def draw_entropy(targets: Sequence[Targets]) -> Chart | None:
    """The mean entropy of the teacher's distributions over training, as a share of the largest there can be."""
    kept = next((found for found in targets if found.probabilities), None)
    if kept is None:
        return None
    largest = math.log(max(len(kept.probabilities[0]), 2))

    def paint(axes: Axes) -> None:
        axes.plot([t.step for t in targets], [t.entropy / largest for t in targets], color=COLOUR["teacher"])
        axes.set_ylim(-0.02, 1.02)
        percent_axis(axes.yaxis)
        step_axis(axes)

    title = "Mean entropy of the teacher's distributions"
    caption = f"Of {len(kept.top):,} fixed unlabelled images; 100 % is the uniform distribution."
    return Chart(title, caption, [], draw(title, (3.6, 2.0), paint))


def standalone(svg: str) -> str:
    """An SVG file of a chart: with its name space, and the colours of a page in light and in dark mode."""
    style = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in _SCHEMES.findall(style))
    rules = [" ".join(f"--{name}: {value};" for name, value in scheme.items()) for scheme in (light, dark)]
    said = (
        f"<style>svg {{ {rules[0]} font-family: system-ui, sans-serif; }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {rules[1]} }} }}</style>"
    )
    head, end, rest = str(svg).partition(">")
    space = "" if "xmlns=" in head else ' xmlns="http://www.w3.org/2000/svg"'
    return head + space + end + said + rest
