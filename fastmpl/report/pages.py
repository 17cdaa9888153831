"""From what was read and drawn to a page: the words and numbers of a template, escaped, written whole or not at all."""

import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastmpl import __version__
from fastmpl.paired_statistics import Interval
from fastmpl.report.accuracy_chart import draw_accuracies
from fastmpl.report.analysis_charts import (
    Curves,
    curves_of_run,
    draw_entropy,
    draw_targets,
    draw_training_accuracies,
)
from fastmpl.report.comparison_chart import Comparison, baseline, dot_plot, rows
from fastmpl.report.curve_charts import draw_questions, titles_left_out
from fastmpl.report.drawing import Chart
from fastmpl.report.errors_file import FILE as ERRORS
from fastmpl.report.errors_file import format_errors
from fastmpl.report.feedback_alarms import describe_feedback
from fastmpl.report.pictures import describe_pictures
from fastmpl.report.reading import RunRecord, read_run
from fastmpl.telemetry.progress import duration
from fastmpl.telemetry.training_analysis import Targets, share_flipped

PACKAGES: Final = ("torch", "torchvision", "timm", "nvidia-dali-cuda130", "deepspeed")
NOTHING: Final = "–"


def percent(share: float) -> str:
    """`91.2 %`, with a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else NOTHING


def points(interval: Interval | None) -> str:
    """`+24.9 [+22.1, +27.7]` in percentage points."""
    if interval is None or not math.isfinite(interval.mean):
        return NOTHING
    centre, low, high = (f"{round(100 * value, 1) + 0.0:+.1f}" for value in interval)  # + 0.0: no minus at zero
    return (f"{centre} [{low}, {high}]" if math.isfinite(interval.low) else centre).replace("-", "\N{MINUS SIGN}")


def versions() -> dict[str, str]:
    """What this process runs on."""
    found = {"fastmpl": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {"machine": f"{platform.system()} {platform.machine()}"}


def _write_page(path: Path, template: str, **content: Any) -> Path:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points}
    return _write_text(path, environment.get_template(template).render(**content))


def _write_text(path: Path, text: str) -> Path:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8", errors="replace")
    os.replace(beside, path)
    return path


def summary(run: RunRecord) -> str:
    """The run in a sentence."""
    said = []
    if run.config is not None:
        data = run.config.data
        labels = f"{data.labels:,} labels" if data.labels else "all labels"
        said.append(f"Trained by {run.config.method.name} on {data.source} with {labels}, seed {run.config.run.seed}")
    if run.last and run.last[0].step is not None:
        said.append(f"{run.last[0].step:,} steps")
    if math.isfinite(run.seconds):
        said.append(f"in {duration(run.seconds)}")
    return ", ".join(said)


def _images(run: RunRecord, split: str) -> int:
    return max((row.images for row in run.evaluations if row.split == split and isinstance(row.images, int)), default=0)


def uncertainty(share: float, images: int) -> str:
    """Standard error of an accuracy measured on `images` images: `± 0.8`, in percentage points."""
    if not images or not 0 <= share <= 1:
        return ""
    return f"± {100 * math.sqrt(share * (1 - share) / images):.1f}"


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run's folder, from what is in it, and gives its path. Raises OSError if it cannot.

    `errors.csv` beside it lists the images that were classified wrongly, where the run has its predictions.
    """
    run = read_run(folder)
    if run.record is not None:
        _write_text(folder / ERRORS, format_errors(run.record))
    return _write_page(
        folder / "report.html",
        "run.html",
        run=run,
        summary=summary(run),
        accuracy=draw_accuracies(run),
        pictures=describe_pictures(run.record, run.targets) if run.record is not None else None,
        feedback=describe_feedback(run),
        curves=draw_questions(run),
        training=draw_training_accuracies(curves_of_run(run.training)) + _target_charts(run.targets),
        flipped=share_flipped(run.targets),
        left_out=titles_left_out(run),
        images={split: _images(run, split) for split in ("validation", "test")},
        uncertainty=uncertainty,
        versions=run.versions or versions(),
        recorded=bool(run.versions),
    )


def write_analyses(
    path: Path, summary: str, curves: Curves, targets: Sequence[Targets], findings: Sequence[str]
) -> Path:
    """Writes the page of the two analyses of training, and gives its path. Raises OSError if it cannot.

    curves: accuracies on training images by network. targets: of one run. findings: the numbers, a line each.
    """
    pictures = {"accuracies": draw_training_accuracies(curves), "targets": _target_charts(targets)}
    return _write_page(path, "analyses.html", summary=summary, findings=findings, versions=versions(), **pictures)


def _target_charts(targets: Sequence[Targets]) -> list[Chart]:
    steps = max((found.step for found in targets), default=0)
    return [chart for chart in (draw_targets(targets, steps), draw_entropy(targets)) if chart is not None]


def write_comparison(path: Path, title: str, tables: Sequence[Comparison], remarks: Sequence[str] = ()) -> Path:
    """Writes the tables of an experiment as one page, and gives its path. Raises OSError if it cannot.

    remarks: sentences for the top of the page.
    """
    sections = [
        {"table": table, "rows": rows(table), "against": baseline(table).name, "svg": dot_plot(table, number)}
        for number, table in enumerate(tables, 1)
    ]
    return _write_page(path, "comparison.html", title=title, remarks=remarks, sections=sections, versions=versions())
