"""The command `fastmpl`: one dataclass and one function a verb, and the one place that turns errors into exit codes.

Nothing here imports torch: --help and a mistake in a file answer at once. A verb imports what it runs.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from fastmpl.config.load import difference, load, to_toml
from fastmpl.config.options import parse, parse_plain
from fastmpl.config.schema import Config
from fastmpl.errors import ConfigError, FastMPLError, StorageError, ToldByPeer
from fastmpl.threads import limit_threads

INTERRUPTED: Final = 130  # Ctrl-C, as shells count it
SPEAKS_FIRST: Final = 3.0  # seconds: a launcher ends every rank as soon as one has ended


@dataclass(frozen=True)
class Train:
    """Trains a student, and writes its run folder. --help-all lists every key of the configuration."""

    config: Positional[Path]
    """TOML file; launch/configs holds examples."""
    resume: str = "auto"
    """auto: from the newest valid checkpoint, if there is one; never: from the start; or a checkpoint's folder."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print the resolved configuration, and train nothing."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


@dataclass(frozen=True)
class Check:
    """Checks the configuration, the data and the disk, and trains nothing."""

    config: Positional[Path]
    """TOML file; launch/configs holds examples."""
    download: FlagCreatePairsOff[bool] = False
    """Fetch CIFAR or SVHN into data.root first, if it is not there. Nothing else ever downloads."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def train(asked: Train, config: Config) -> None:
    if asked.dry_run:
        print(to_toml(config), end="")
        return
    limit_threads(config.system.threads)
    from fastmpl import trainer

    trainer.train(config, resume=asked.resume)


def check(asked: Check, config: Config) -> None:
    from fastmpl.check import check as lines

    changed = len(difference(config, Config()))
    print(f"config  {asked.config}: {config.method.name}, {changed} keys differ from their defaults")
    if asked.download:
        from fastmpl.data.published import download

        print(f"fetched {download(config.data.source, config.data.root)}")
    for line in lines(config):
        print(line)


@dataclass(frozen=True)
class Plan:
    """Says what a run would need: memory of each GPU and arithmetic, by sharding and schedule; trains nothing."""

    config: Positional[Path]
    """TOML file; launch/configs holds examples."""
    ranks: int = 1
    """GPUs that share the batch."""
    memory: float = 80.0
    """GiB of each GPU."""
    classes: int = 0
    """Number of classes, where the images are a folder of your own."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def plan(asked: Plan, config: Config) -> None:
    from fastmpl import planner

    if asked.ranks < 1 or asked.memory <= 0:
        raise ConfigError("fastmpl plan needs --ranks of at least 1, and --memory above 0.")
    found = planner.plan(config, ranks=asked.ranks, memory=asked.memory * 2**30, classes=asked.classes)
    for line in planner.lines(found):
        print(line)


@dataclass(frozen=True)
class Distill:
    """Stores a teacher's class distributions over all training images, for distillation and reduced_mpl."""

    config: Positional[Path]
    """TOML file whose [data] section names the images; data.store is the folder that is written."""
    teacher: str = ""
    """The folder of a finished run, or timm:NAME."""
    from_probabilities: Path | None = None
    """Instead of a teacher: an NPY, CSV or Parquet file of image name or index and class probabilities."""
    output: Path | None = None
    """Folder to write, where it is not data.store."""
    top_k: int = 0
    """Classes kept of each row, with the mass of the others; 0: all."""
    views: int = 1
    """1: images as they are evaluated; n: the mean over n augmented views."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def distill(asked: Distill, config: Config) -> None:
    limit_threads(config.system.threads)
    from fastmpl.distill import Source
    from fastmpl.distill import distill as write

    source = Source(asked.teacher, asked.from_probabilities, asked.views)
    header = write(config, source, output=asked.output, top_k=asked.top_k, tell=lambda line: print(line, flush=True))
    if header is None:
        print("The other processes' shards are not all there yet: the last of them finishes the store.")
        return
    error, size = header.error, sum(shard.bytes for shard in header.shards)
    print(
        f"{header.rows:,} rows of {header.classes:,} classes ({header.kept:,} kept) of {header.teacher}, "
        f"{size / 1e6:.1f} MB. Storing moved {error.mean_total_variation:.1e} of a row's mass on average, "
        f"{error.largest_total_variation:.1e} at most, and changed {error.changed_top:,} top classes."
    )


@dataclass(frozen=True)
class Ablate:
    """Trains a configuration with its feedback off, on, shuffled and flipped, and tests the difference over seeds."""

    config: Positional[Path]
    """TOML file; launch/configs holds examples."""
    seeds: int = 5
    """Seeds 0, 1, ...: each is a split, draws and initial weights that all arms share."""
    output: Path | None = None
    """Folder of the runs and the report, by default runs/ablate-NAME; finished runs are not trained again."""
    jobs: int = 0
    """Runs at a time, one thread each; 0: one a core."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def ablate(asked: Ablate, config: Config) -> None:
    from fastmpl import ablation

    folder = asked.output or Path(config.run.output) / f"ablate-{config.run.name}"
    print(f"\nreport: {ablation.run(config, folder, asked.seeds, asked.jobs or None)}")


@dataclass(frozen=True)
class Demo:
    """Trains two small tables on real data: what feedback does with few labels, and with noisy ones."""

    output: Path = Path("runs/demo")
    """Folder of the runs; finished ones are not trained again."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


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
    from fastmpl.data import pack
    from fastmpl.data.errors import DataError
    from fastmpl.data.pack_shard import How
    from fastmpl.data.tree import shown

    if asked.verify:
        if damaged := list(pack.verify(asked.output)):
            raise DataError("; ".join(damaged) + ". Delete it, and pack again: the rest is kept.")
        print(f"Every tar in {asked.output} is as it was written.")
        return
    if asked.size < 0 or not 1 <= asked.quality <= 100 or asked.shard_images < 1:
        raise ConfigError("fastmpl pack needs --size of 0 or more, --quality of 1 to 100, --shard-images of 1 or more.")
    how = How(asked.size, asked.quality, asked.shard_images)
    made = pack.pack(asked.folder, asked.output, how, processes=asked.jobs, tell=lambda line: print(line, flush=True))
    for one in made.left_out:
        print(f"skipped {shown(one['file'])}: {shown(one['reason'])}")
    print(f"{made.images:,} pictures in {made.shards:,} tars, {made.bytes / 1e6:,.1f} MB, in {asked.output}")


@dataclass(frozen=True)
class Report:
    """Writes the report of a run, a page that needs nothing else, from what its folder holds."""

    run: Positional[Path]
    """Folder of the run."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


@dataclass(frozen=True)
class Init:
    """Writes a first configuration for a folder of pictures: FOLDER/labelled/<class>/*, FOLDER/unlabelled/*."""

    folder: Positional[str]
    """Folder with labelled/, and perhaps unlabelled/, test/ and trusted/."""
    output: Path | None = None
    """File to write; the folder's name with .toml if not given."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


@dataclass(frozen=True)
class Evaluate:
    """Says how well a run's student classifies labelled images."""

    run: Positional[Path]
    """Folder of the finished run."""
    data: Path | None = None
    """Folder with <class>/* or test/<class>/*; the run's own validation and test images if not given."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


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


@dataclass(frozen=True)
class Status:
    """Says whether a run is still at it, how far and how well."""

    run: Positional[Path]
    """Folder of the run."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


@dataclass(frozen=True)
class Doctor:
    """Says what this machine has and lacks, and checks the kernels that would run here against their references."""

    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def doctor(asked: Doctor) -> None:
    limit_threads()
    from fastmpl.doctor import lines

    for line in lines():
        print(line, flush=True)


def init(asked: Init) -> None:
    from fastmpl.begin import begin

    path = begin(asked.folder, asked.output)
    print(f"{path} is written. Look through it, then: fastmpl check {path}; fastmpl train {path}")


def evaluate(asked: Evaluate) -> None:
    limit_threads()
    from fastmpl import judgement

    classes, found = judgement.evaluate(asked.run, asked.data)
    print("\n\n".join(judgement.as_text(classes, one) for one in found))


def predict(asked: Predict) -> None:
    limit_threads()
    from fastmpl import predict

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


def status(asked: Status) -> None:
    from fastmpl.status import status as lines

    for line in lines(asked.run):
        print(line)


def demo(asked: Demo) -> None:
    from fastmpl import demo

    print(f"\nreport: {demo.run(asked.output)}")


def report(asked: Report) -> None:
    from fastmpl.report import write_report

    if not (asked.run / "config.toml").is_file():
        raise ConfigError(f"{asked.run} is not the folder of a run: it has no config.toml.")
    print(write_report(asked.run))


# A verb over a configuration takes the options of every key of it.
CONFIGURED: Final[dict[str, tuple[type[Any], Callable[[Any, Config], None]]]] = {
    "train": (Train, train),
    "check": (Check, check),
    "plan": (Plan, plan),
    "distill": (Distill, distill),
    "ablate": (Ablate, ablate),
}
OTHERS: Final[dict[str, tuple[type[Any], Callable[[Any], None]]]] = {
    "demo": (Demo, demo),
    "pack": (Pack, pack),
    "report": (Report, report),
    "init": (Init, init),
    "evaluate": (Evaluate, evaluate),
    "predict": (Predict, predict),
    "status": (Status, status),
    "doctor": (Doctor, doctor),
}
VERBS: Final = {name: asked for name, (asked, _) in (CONFIGURED | OTHERS).items()}


def _usage() -> str:
    verbs = "\n".join(f"  {name:10}{asked.__doc__}" for name, asked in VERBS.items())
    return f"usage: fastmpl VERB ...\n\n{verbs}\n\nfastmpl VERB --help explains a verb."


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in VERBS:
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help", "--help-all")
        print(_usage(), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    name, rest = arguments[0], arguments[1:]
    if name in OTHERS:
        asked_type, other = OTHERS[name]
        other(parse_plain(asked_type, f"fastmpl {name}", rest))
        return 0
    asked_type, verb = CONFIGURED[name]
    try:
        asked, overrides = parse(asked_type, f"fastmpl {name}", rest)
        config = load(asked.config, overrides)
    except FastMPLError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # the first rank of this machine reads the same and says it
            time.sleep(SPEAKS_FIRST)
            raise ToldByPeer(error.exit_code, str(error)) from error
        raise
    verb(asked, config)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and gives the exit code: 0 done, 2 usage or configuration, 3 data, 4 diverged, 5 storage,
    6 a peer was lost or hung, 75 interrupted and resumable, 130 Ctrl-C. Other exceptions are mistakes of ours and pass.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except FastMPLError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        elif not error.told:
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
