"""The verbs before a run, on pictures, the machine and the shell: a dataclass and a function a verb."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional

from fastmpl.cli.bounds import Bounds
from fastmpl.cli.completion import Shell
from fastmpl.cli.endings import say, say_facts
from fastmpl.config.examples import find_example, list_examples
from fastmpl.config.load import write_new
from fastmpl.distributed.threads import limit_threads
from fastmpl.errors import ConfigError


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
