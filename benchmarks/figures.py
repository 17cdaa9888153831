"""The pictures in docs/figures that show measurements, drawn from records: `python -m benchmarks.figures`.

`python -m benchmarks.tables` draws them too, and `--check` compares them. step.svg is an explanation, drawn by hand.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.environment import ROOT
from benchmarks.experiments.two_moons import ARMS, CONFIG
from benchmarks.records import RESULTS, Record, Row, load
from fastmpl.config import load as load_config
from fastmpl.data.build import build as build_data
from fastmpl.report.analysis_charts import draw_targets, draw_training_accuracies, standalone
from fastmpl.report.drawing import COLOUR, draw
from fastmpl.telemetry.training_analysis import Targets, TrainingAccuracy

FIGURES = ROOT / "docs" / "figures"
GROWING = ("student", "teacher", "average", "extra", "ink")  # colours of the curves of `draw_growth`
DRAWN_BY_HAND = frozenset({"step.svg"})


def _by(rows: list[Row], column: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found


def draw_label_correction(record: Record) -> dict[str, bytes]:
    """Accuracy on the training images over training, of `benchmarks.experiments.label_correction`."""
    made = {}
    for method, rows in _by(record.rows, "method").items():
        curves = {
            str(name): [TrainingAccuracy(**{key: row[key] for key in TrainingAccuracy._fields}) for row in of]  # type: ignore[arg-type]
            for name, of in _by(rows, "curve").items()
        }
        for chart in draw_training_accuracies(curves):
            images = "unlabelled" if "unlabelled" in chart.title else "labelled"
            made[f"label_correction_{method}_{images}.svg"] = standalone(chart.svg).encode()
    return made


def draw_target_distributions(record: Record) -> dict[str, bytes]:
    """The teacher's distributions of a dozen images, of `benchmarks.experiments.target_distributions`."""
    made = {}
    for method, rows in _by(record.rows, "method").items():
        moments = [_targets(share, of) for share, of in _by(rows, "share of training").items()]
        chart = draw_targets(moments, 100)
        assert chart is not None, "the record has no distributions"
        made[f"target_distributions_{method}.svg"] = standalone(chart.svg).encode()
    return made


def _targets(share: float, rows: list[Row]) -> Targets:
    """The distributions at one moment of a training of 100 steps."""
    classes = str(rows[0]["classes"]).split(", ")
    truth = [classes.index(str(row["true class"])) for row in rows]
    shares: list[list[float]] = [row["distribution"] for row in rows]  # type: ignore[misc]
    return Targets(round(100 * share), 0.0, 0.0, (), shares, (), truth, classes)


def draw_two_moons(record: Record) -> dict[str, bytes]:
    """Where each arm's student changes its mind: a row an arm, a column a draw of labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    seeds = sorted(_by(record.rows, "draw"))
    figure = Figure(figsize=(2.4 * len(seeds), 2.1 * len(ARMS)), layout="constrained")
    axes = figure.subplots(len(ARMS), len(seeds), squeeze=False, sharex=True, sharey=True)
    for row in record.rows:
        seed, name = row["draw"], str(row["arm"])
        at = axes[list(ARMS).index(name)][seeds.index(seed)]
        data = build_data(load_config(CONFIG, {"run.seed": seed}).data, seed=int(seed))  # type: ignore[arg-type]
        assert data.test is not None
        at.set_facecolor("#c7dcf0")
        if row["codes"]:
            corners = np.array([row["x"], row["y"]]).T
            at.add_patch(
                PathPatch(Outline(corners, np.array(row["codes"], np.uint8)), facecolor="#f6d3c3", linewidth=0)
            )
        labelled = data.examples(data.split.labelled)
        at.scatter(*data.test.images[::4].T.numpy(), c=data.test.labels[::4].numpy(), s=1, cmap="coolwarm")
        at.scatter(*labelled.images.T.numpy(), c="black", s=14, marker="x")
        at.set(xticks=[], yticks=[], xlim=(-1.5, 2.5), ylim=(-1.0, 1.5))
        if seed == seeds[0]:
            at.set_ylabel(name)
        if name == next(iter(ARMS)):
            at.set_title(f"draw {seed}")
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)  # type: ignore[no-untyped-call]
    return {"two_moons.png": picture.getvalue()}


def draw_growth(record: Record) -> dict[str, bytes]:
    """Time of a step over what grows, both relative to the smallest, of `benchmarks.bench_growth`."""
    curves = {name: rows for name, rows in _by(record.rows, "axis").items() if "operators" in rows[0]}

    def paint(axes: Axes) -> None:
        for (name, rows), role in zip(curves.items(), GROWING, strict=True):
            sizes, seconds = ([float(row[key]) for row in rows] for key in ("value", "seconds"))  # type: ignore[arg-type]
            x, y = ([each / of[0] for each in of] for of in (sizes, seconds))
            axes.plot(x, y, marker="o", markersize=3, color=COLOUR[role])
            left = x[-1] < 6  # other curves are to the right of it
            axes.annotate(
                name,
                (x[-1], y[-1]),
                (-5, 5) if left else (5, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                color=COLOUR[role],
            )
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("log")
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("size, relative to the smallest", color=COLOUR["muted"])
        axes.set_ylabel("CPU time of a step, relative", color=COLOUR["muted"])
        axes.set_xlim(0.8, 1e5)

    drawn = draw("CPU time of a step over what grows, on logarithmic scales", (5.6, 3.2), paint)
    return {"growth.svg": standalone(drawn).encode()}


# the record -> its pictures
DRAWINGS: Mapping[str, Callable[[Record], dict[str, bytes]]] = {
    "label_correction_curves": draw_label_correction,
    "target_distributions_images": draw_target_distributions,
    "two_moons_boundaries": draw_two_moons,
    "growth_points": draw_growth,
}


def draw_all(results: Path = RESULTS) -> dict[str, bytes]:
    """The contents of each picture by its name in docs/figures."""
    made: dict[str, bytes] = {}
    for name, make in DRAWINGS.items():
        made |= make(load(name, results))
    return made


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    for name, content in draw_all().items():
        (FIGURES / name).write_bytes(content)
        print(FIGURES / name)


if __name__ == "__main__":
    main()
