"""The verbs without a configuration, on runs, folders of pictures and the machine: a dataclass and a function a verb."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from fastmpl.cli.bounds import Bounds
from fastmpl.cli.completion import Shell
from fastmpl.cli.endings import say, say_facts
from fastmpl.config.examples import find_example, list_examples
from fastmpl.config.load import write_new
from fastmpl.distributed.threads import limit_threads
from fastmpl.errors import ConfigError, StorageError

NetworkOption = Literal["selected", "average", "last", "finetuned", "teacher"]


@dataclass(frozen=True)
class InitOptions:
    """Writes a first configuration for a folder of pictures: FOLDER/labelled/<class>/*, FOLDER/unlabelled/*."""

    folder: Positional[str] = ""
    """Folder with labelled/ (or train/), and perhaps unlabelled/, test/ and trusted/."""
    example: str = ""
    """Instead of a folder: name of an example to copy, such as digits, which needs no pictures."""
    output: Path | None = None
    """File to write; the name of the folder or the example with .toml if not given."""
    quick: FlagCreatePairsOff[bool] = False
    """A quarter of the steps, for a first look."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def init(options: InitOptions) -> None:
    if bool(options.folder) == bool(options.example):
        raise ConfigError(
            f"fastmpl init needs a folder of pictures, or --example NAME, one of {', '.join(list_examples())}."
        )
    if options.example:
        _copy_example(find_example(options.example), options.output)
        return
    limit_threads()
    from fastmpl.commands.init import format_minutes, write_first_config

    path, seconds = write_first_config(options.folder, options.output, quick=options.quick)
    say(f"{path} is written; training takes {format_minutes(seconds)} on this machine. Look through it, then:")
    _print_next(path)


def _copy_example(example: Path, output: Path | None) -> None:
    path = output or Path(example.name)
    write_new(path, example.read_text(encoding="utf-8"))
    say(f"{path} is written. Look through it, then:")
    _print_next(path)


def _print_next(path: Path) -> None:
    quoted = shlex.quote(str(path))
    say(f"  fastmpl check {quoted}\n  fastmpl train {quoted}")


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

    if not (options.run / "config.toml").is_file():
        raise ConfigError(f"{options.run} is not the folder of a run: it has no config.toml.")
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
class PackOptions:
    """Packs a folder of pictures into WebDataset tars, which a disk reads faster. Repeat it after an interruption."""

    folder: Positional[str]
    """Folder with labelled/<class>/*, and perhaps unlabelled/, trusted/ and test/."""
    output: Positional[Path]
    """Folder to write; data.root of a configuration with data.source = "webdataset"."""
    size: Annotated[int, Bounds(0, 65_500)] = 0
    """Largest longer side in pixels; larger pictures are shrunk to it. 0: every file as it is. 500 suits 224."""
    quality: Annotated[int, Bounds(1, 100)] = 90
    """JPEG quality of the pictures that are shrunk."""
    shard_images: Annotated[int, Bounds(1)] = 1000
    """Pictures in a tar."""
    jobs: Annotated[int, Bounds(0, 10_000)] = 0
    """Processes; 0: one a core."""
    verify: FlagCreatePairsOff[bool] = False
    """Only compare every tar in OUTPUT with its checksum, and pack nothing."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def pack(options: PackOptions) -> None:
    from fastmpl.data.errors import DataError
    from fastmpl.data.packing import pack, pack_shard

    if options.verify:
        if damaged := list(pack.verify(options.output)):
            raise DataError("; ".join(damaged) + ". Delete it, and pack again: the rest is kept.")
        say(f"Every tar in {options.output} is as it was written.")
        return
    shrinking = pack_shard.PackSettings(options.size, options.quality, options.shard_images)
    made = pack.pack(options.folder, options.output, shrinking, processes=options.jobs, tell=say)
    for one in made.left_out:
        say(f"skipped {one['file']}: {one['reason']}")
    say(f"{made.images:,} pictures in {made.shards:,} tars, {made.bytes / 1e6:,.1f} MB, in {options.output}")


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


@dataclass(frozen=True)
class DoctorOptions:
    """Lists what this machine has and lacks, and compares its kernels with their references."""

    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def run_doctor(options: DoctorOptions) -> None:
    limit_threads()
    from fastmpl.commands.doctor import lines

    say_facts(lines())


@dataclass(frozen=True)
class CompletionOptions:
    """Prints what makes Tab complete fastmpl's verbs and options in your shell."""

    shell: Positional[Shell]
    """The shell."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class DemoOptions:
    """Trains two small experiments on real data: feedback with few labels, and with noisy ones."""

    output: Path = Path("runs/demo")
    """Folder of the runs. Finished runs are not trained again."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def run_demo(options: DemoOptions) -> None:
    from fastmpl.study import demo

    say(f"\nreport: {demo.run(options.output)}")
