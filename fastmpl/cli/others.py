"""The verbs over runs, folders of pictures and the machine. A dataclass and a function a verb."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional

from fastmpl.distributed.threads import limit_threads
from fastmpl.errors import ConfigError, StorageError


@dataclass(frozen=True)
class Init:
    """Writes a first configuration for a folder of pictures: FOLDER/labelled/<class>/*, FOLDER/unlabelled/*."""

    folder: Positional[str]
    """Folder with labelled/, and perhaps unlabelled/, test/ and trusted/."""
    output: Path | None = None
    """File to write; the folder's name with .toml if not given."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def init(asked: Init) -> None:
    from fastmpl.commands.init import begin

    path = begin(asked.folder, asked.output)
    print(f"{path} is written. Look through it, then: fastmpl check {path}; fastmpl train {path}")


@dataclass(frozen=True)
class Evaluate:
    """Says how well a run's student classifies labelled images."""

    run: Positional[Path]
    """Folder of the finished run."""
    data: Path | None = None
    """Folder with <class>/* or test/<class>/*; the run's own validation and test images if not given."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def evaluate(asked: Evaluate) -> None:
    limit_threads()
    from fastmpl.commands.evaluate import as_text, evaluate

    classes, found = evaluate(asked.run, asked.data)
    print("\n\n".join(as_text(classes, one) for one in found))


@dataclass(frozen=True)
class Predict:
    """Says what a run's student sees in pictures, one line a file."""

    run: Positional[Path]
    """Folder of the finished run."""
    images: Positional[tuple[Path, ...]]
    """Image files, and folders of them."""
    format: Literal["csv", "json"] = "csv"
    """csv: file, label, confidence, problem; json: the probability of every class, too."""
    output: Path | None = None
    """File to write; the terminal if not given."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def predict(asked: Predict) -> None:
    limit_threads()
    from fastmpl.commands import predict

    if not asked.images:
        raise ConfigError("fastmpl predict needs image files, or folders of them, after the run.")
    found = predict.predict(asked.run, asked.images)
    if asked.output is None:
        predict.write(found, asked.format, sys.stdout)
        return
    try:
        with asked.output.open("w", encoding="utf-8", newline="") as out:
            predict.write(found, asked.format, out)
    except OSError as error:
        raise StorageError(f"{asked.output} cannot be written: {error.strerror}.") from error


@dataclass(frozen=True)
class Report:
    """Writes the report of a run, a page that needs nothing else, from what its folder holds."""

    run: Positional[Path]
    """Folder of the run."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def report(asked: Report) -> None:
    from fastmpl.report import write_report

    if not (asked.run / "config.toml").is_file():
        raise ConfigError(f"{asked.run} is not the folder of a run: it has no config.toml.")
    print(write_report(asked.run))


@dataclass(frozen=True)
class Status:
    """Says whether a run is still at it, how far and how well."""

    run: Positional[Path]
    """Folder of the run."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def status(asked: Status) -> None:
    from fastmpl.commands.status import status as lines

    for line in lines(asked.run):
        print(line)


@dataclass(frozen=True)
class Pack:
    """Packs a folder of pictures into WebDataset tars, which a disk reads faster; interrupted, the same command goes on."""

    folder: Positional[str]
    """Folder with labelled/<class>/*, and perhaps unlabelled/, trusted/ and test/."""
    output: Positional[Path]
    """Folder to write; data.root of a configuration with data.source = "webdataset"."""
    size: int = 0
    """Pixels of the longer side, to which larger pictures are made smaller; 0: every file as it is. 500 suits 224."""
    quality: int = 90
    """Quality of the JPEGs that are made smaller."""
    shard_images: int = 1000
    """Pictures in a tar."""
    jobs: int = 0
    """Processes; 0: one a core."""
    verify: FlagCreatePairsOff[bool] = False
    """Only compare every tar in OUTPUT with its checksum."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def pack(asked: Pack) -> None:
    from fastmpl.data.errors import DataError, printable
    from fastmpl.data.packing import pack
    from fastmpl.data.packing.pack_shard import PackOptions

    if asked.verify:
        if damaged := list(pack.verify(asked.output)):
            raise DataError("; ".join(damaged) + ". Delete it, and pack again: the rest is kept.")
        print(f"Every tar in {asked.output} is as it was written.")
        return
    if asked.size < 0 or not 1 <= asked.quality <= 100 or asked.shard_images < 1:
        raise ConfigError("fastmpl pack needs --size of 0 or more, --quality of 1 to 100, --shard-images of 1 or more.")
    options = PackOptions(asked.size, asked.quality, asked.shard_images)
    made = pack.pack(
        asked.folder, asked.output, options, processes=asked.jobs, tell=lambda line: print(line, flush=True)
    )
    for one in made.left_out:
        print(f"skipped {printable(one['file'])}: {printable(one['reason'])}")
    print(f"{made.images:,} pictures in {made.shards:,} tars, {made.bytes / 1e6:,.1f} MB, in {asked.output}")


@dataclass(frozen=True)
class Doctor:
    """Says what this machine has and lacks, and checks the kernels that would run here against their references."""

    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def doctor(asked: Doctor) -> None:
    limit_threads()
    from fastmpl.commands.doctor import lines

    for line in lines():
        print(line, flush=True)


@dataclass(frozen=True)
class Demo:
    """Trains two small tables on real data: what feedback does with few labels, and with noisy ones."""

    output: Path = Path("runs/demo")
    """Folder of the runs; finished ones are not trained again."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def demo(asked: Demo) -> None:
    from fastmpl.study import demo

    print(f"\nreport: {demo.run(asked.output)}")
