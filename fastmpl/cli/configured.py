"""The verbs over a configuration: each takes the options of every key of it. A dataclass and a function a verb."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import FlagCreatePairsOff, Positional

from fastmpl.config.load import difference, to_toml
from fastmpl.config.schema import Config
from fastmpl.distributed.threads import limit_threads
from fastmpl.errors import ConfigError


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


def train(asked: Train, config: Config) -> None:
    if asked.dry_run:
        print(to_toml(config), end="")
        return
    limit_threads(config.system.threads)
    from fastmpl.run import trainer

    trainer.train(config, resume=asked.resume)


@dataclass(frozen=True)
class Check:
    """Checks the configuration, the data and the disk, and trains nothing."""

    config: Positional[Path]
    """TOML file; launch/configs holds examples."""
    download: FlagCreatePairsOff[bool] = False
    """Fetch CIFAR or SVHN into data.root first, if it is not there. Nothing else ever downloads."""
    debug: FlagCreatePairsOff[bool] = False
    """Show where in the code an error came from."""


def check(asked: Check, config: Config) -> None:
    from fastmpl.commands.check import check as lines

    changed = len(difference(config, Config()))
    print(f"config  {asked.config}: {config.method.name}, {changed} keys differ from their defaults")
    if asked.download:
        from fastmpl.data.readers.published import download

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
    from fastmpl.analysis import planner

    if asked.ranks < 1 or asked.memory <= 0:
        raise ConfigError("fastmpl plan needs --ranks of at least 1, and --memory above 0.")
    found = planner.plan_memory(config, ranks=asked.ranks, memory=asked.memory * 2**30, classes=asked.classes)
    for line in planner.format_plan(found):
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
    from fastmpl.commands.distill import Source
    from fastmpl.commands.distill import distill as write

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
    from fastmpl.study import ablation

    folder = asked.output or Path(config.run.output) / f"ablate-{config.run.name}"
    print(f"\nreport: {ablation.run(config, folder, asked.seeds, asked.jobs or None)}")
