"""The verbs on runs that are there: a dataclass and a function a verb."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional

from fastmpl.cli.endings import say, say_facts
from fastmpl.distributed.threads import limit_threads
from fastmpl.errors import ConfigError, StorageError

NetworkOption = Literal["selected", "average", "last", "finetuned", "teacher"]


@dataclass(frozen=True)
class EvaluateOptions:
    """Measures how well a run's student classifies labelled images."""

    run: Positional[Path]
    """Folder of the finished run."""
    data: Path | None = None
    """Folder with <class>/* or test/<class>/*; the run's own validation and test images if not given."""
    network: NetworkOption | None = None
    """Network of the run; if not given, the one in student.safetensors, which the report's headline speaks of."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def evaluate(options: EvaluateOptions) -> None:
    limit_threads()
    from fastmpl.commands.evaluate import evaluate, format_scores

    found = evaluate(options.run, options.data, options.network)
    say(f"network: {found.description}\n")
    say("\n\n".join(format_scores(found.classes, one) for one in found.sets))


@dataclass(frozen=True)
class PredictOptions:
    """Classifies pictures with a run's student, one line a file."""

    run: Positional[Path]
    """Folder of the finished run."""
    images: Positional[tuple[Path, ...]]
    """Image files, and folders of them."""
    format: Literal["csv", "json"] = "csv"
    """csv: file, label, confidence, problem; json: the probability of every class, too."""
    network: NetworkOption | None = None
    """Network of the run; if not given, the one in student.safetensors, which the report's headline speaks of."""
    output: Path | None = None
    """File to write; the terminal if not given."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def predict(options: PredictOptions) -> None:
    limit_threads()
    from fastmpl.commands import predict

    if not options.images:
        raise ConfigError("fastmpl predict needs image files, or folders of them, after the run.")
    remarks: list[str] = []
    found = predict.predict(options.run, options.images, remarks.append, options.network)
    if options.output is None:
        predict.write_table(found, options.format, sys.stdout)
    else:
        try:
            with options.output.open("w", encoding="utf-8", newline="") as out:
                predict.write_table(found, options.format, out)
        except OSError as error:
            raise StorageError(f"{options.output} cannot be written: {error.strerror}.") from error
    for remark in remarks:  # after the table: where there is none, the error alone is said
        say(remark, error=True)


@dataclass(frozen=True)
class ExportOptions:
    """Writes a run's student for other programs: ONNX, torch.export, safetensors, or a folder of timm."""

    run: Positional[Path]
    """Folder of the run."""
    to: Literal["onnx", "pt2", "safetensors", "timm"] = "onnx"
    """Form of the file."""
    network: NetworkOption | None = None
    """Network of the run; if not given, the one in student.safetensors, which the report's headline speaks of."""
    output: Path | None = None
    """File or folder to write; in the run's folder if not given."""
    preprocess: FlagCreatePairsOff[bool] = False
    """Put the normalisation into the graph: it takes pixels in [0, 255]."""
    softmax: FlagCreatePairsOff[bool] = False
    """Put the softmax into the graph: it gives probabilities."""
    verify: FlagCreatePairsOff[bool] = False
    """Compare the file with torch on images of the run, and print the largest difference."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def export(options: ExportOptions) -> None:
    limit_threads()
    from fastmpl.commands.export import Wanted, export

    wanted = Wanted(options.to, options.output, options.preprocess, options.softmax, options.verify, options.network)
    found = export(options.run, wanted)
    say("\n".join([f"{found.path} is written", *found.remarks]))


@dataclass(frozen=True)
class ReportOptions:
    """Writes the report of a run, one self-contained HTML page, from the files of its folder."""

    run: Positional[Path]
    """Folder of the run."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def write_report(options: ReportOptions) -> None:
    from fastmpl import report
    from fastmpl.config.paths import suggest_run

    if not (options.run / "config.toml").is_file():
        raise ConfigError(f"{options.run} is not the folder of a run: it has no config.toml.{suggest_run(options.run)}")
    say(report.write_report(options.run))


@dataclass(frozen=True)
class CompareOptions:
    """Sets finished runs beside each other: a table and a page, paired where the seeds match."""

    runs: Positional[tuple[Path, ...]]
    """Folders of finished runs; runs that differ in their seed alone are one row. Rows are compared with the first."""
    output: Path | None = None
    """Page to write; compare.html beside the first run if not given."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def compare(options: CompareOptions) -> None:
    from fastmpl.commands.compare import compare_runs, format_comparison, write_page

    compared = compare_runs(options.runs)
    say(format_comparison(compared))
    path = options.output or options.runs[0].resolve().parent / "compare.html"
    say(f"\nreport: {write_page(path, compared)}")


@dataclass(frozen=True)
class StatusOptions:
    """Says whether a run is still training, its step and its accuracy."""

    run: Positional[Path]
    """Folder of the run."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def print_status(options: StatusOptions) -> None:
    from fastmpl.commands.status import status

    say_facts(status(options.run))


@dataclass(frozen=True)
class ReplayOptions:
    """Takes the step after a checkpoint again and says what it computed: why a run diverged. Changes nothing."""

    checkpoint: Positional[Path]
    """RUN/nan/step-N, which a run that diverged leaves, or RUN/checkpoints/step-N."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def replay(options: ReplayOptions) -> None:
    limit_threads()
    from fastmpl.commands.replay import describe_step

    say_facts(describe_step(options.checkpoint))
