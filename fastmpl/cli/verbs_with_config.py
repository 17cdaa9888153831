"""The verbs that need a configuration, and accept an option for every key of it: a dataclass and a function a verb."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from fastmpl.cli.bounds import Bounds
from fastmpl.cli.endings import say, say_facts
from fastmpl.config.load import difference, to_toml
from fastmpl.config.schema import Config
from fastmpl.distributed.threads import limit_threads
from fastmpl.errors import ConfigError


@dataclass(frozen=True)
class TrainOptions:
    """Trains a student and writes its run folder. --help-all lists every key of the configuration."""

    config: Positional[Path]
    """TOML file; `fastmpl init` writes one."""
    resume: str = "auto"
    """auto: continue from the newest valid checkpoint, if there is one; never: start over; or a checkpoint's folder."""
    restarts: Annotated[int, Bounds(0)] = 0
    """Times that a run which was killed or lost a rank starts again, from its newest checkpoint."""
    force: FlagCreatePairsOff[bool] = False
    """Continue with other settings where the networks stay the same; the run is then not the one it would have been."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print the resolved configuration and train nothing."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def train(options: TrainOptions, config: Config) -> None:
    if options.dry_run:
        if config.student.pretrained or config.teacher.pretrained:
            from fastmpl.run.expected_inputs import settle_inputs

            config = settle_inputs(config)
        print(to_toml(config), end="")
        return
    if options.restarts:
        _train_again(options, config)
        return
    limit_threads(config.system.threads)
    from fastmpl.run import trainer

    trainer.train(config, resume=options.resume, force=options.force)


def _train_again(options: TrainOptions, config: Config) -> None:
    """Trains in a process of its own, which is started again when it fails; ends with its exit code."""
    from fastmpl.run.restarts import restart_command, supervise

    if "RANK" in os.environ:
        raise ConfigError(
            "--restarts is for one process. Several ranks: `python launch/restart.py N deepspeed "
            "launch/train.py CONFIG`."
        )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "config.toml"
        file.write_text(to_toml(config))
        command = restart_command(file, options.resume, *(["--force"] if options.force else []))
        folder = Path(config.run.output) / config.run.name
        code = supervise(command, folder, options.restarts, tell=lambda line: say(line, error=True))
    if code:
        raise SystemExit(code)


@dataclass(frozen=True)
class CheckOptions:
    """Checks the configuration, the data, the networks and the disk. Trains nothing."""

    config: Positional[Path]
    """TOML file; `fastmpl init` writes one."""
    download: FlagCreatePairsOff[bool] = False
    """Fetch CIFAR or SVHN into data.root first, if it is not there. Besides this, only pretrained networks of timm do."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def check(options: CheckOptions, config: Config) -> None:
    from fastmpl.commands.check import check as lines

    changed = len(difference(config, Config()))
    say_facts([f"config  {options.config}: {config.method.name}, {changed} keys differ from their defaults"])
    if options.download:
        from fastmpl.data.readers.published import download

        say(f"fetched {download(config.data.source, config.data.root)}")
    say_facts(lines(config))


@dataclass(frozen=True)
class PlanOptions:
    """Predicts the memory, arithmetic and hours of a run, and recommends how to shard and schedule it. Trains nothing."""

    config: Positional[Path]
    """TOML file; `fastmpl init` writes one."""
    ranks: Annotated[int, Bounds(1)] = 1
    """Number of GPUs that share the batch."""
    memory: Annotated[float, Bounds(0.00001)] = 80.0
    """Memory of each GPU in GiB."""
    classes: Annotated[int, Bounds(0, 10**9)] = 0
    """Number of classes; 0: those of the data, where it is there."""
    gpu: str = "h100"
    """GPU whose peak the estimate of hours starts from: h100, h200, a100, l40s or l4."""
    share: float = 0.3
    """Share of this peak that a step reaches; a third is good for convolutions."""
    measured: Path | None = None
    """Instead: folder of a run of this configuration on your machine, whose speed is taken; it may have had other ranks."""
    link: Annotated[float, Bounds(0.001)] = 50.0
    """GB a second that a GPU sends to another machine."""
    images: Annotated[int, Bounds(0)] = 0
    """Number of images in the data, for what listing them takes; 0: not told."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def plan(options: PlanOptions, config: Config) -> None:
    from fastmpl.analysis import planner
    from fastmpl.run.expected_inputs import settle_inputs

    config = settle_inputs(config)
    measured = None if options.measured is None else planner.pace_of_run(config, options.measured, options.ranks)
    planner.pace_at_share(config, 0, options.gpu, options.share)  # refuses what it cannot use before the counting
    classes = planner.count_classes(config, options.classes)
    say(f"classes   {classes.number:,}, {classes.source}")
    found = planner.plan_memory(config, ranks=options.ranks, memory=options.memory * 2**30, classes=classes.number)
    best = planner.recommend(found)
    for line in (*planner.format_plan(found), "", *planner.format_recommendation(found, best, config)):
        say(line)
    if best is not None:
        flops = found.costs[best.fit.schedule].flops
        pace = measured or planner.pace_at_share(config, flops, options.gpu, options.share)
        say(planner.format_duration(config.run.steps, pace))
        link = planner.Link(between=options.link * 1e9)
        scale = planner.plan_scale(config, found, best.fit, pace, images=options.images, link=link)
        for line in planner.format_scale(scale, planner.uneven_batches(config, options.ranks)):
            say(line)


@dataclass(frozen=True)
class DistillOptions:
    """Stores a teacher's class probabilities for all training images, for distillation and reduced_mpl."""

    config: Positional[Path]
    """TOML file whose [data] section names the images; data.store is the folder that is written."""
    teacher: str = ""
    """The folder of a finished run, or timm:NAME."""
    from_probabilities: Path | None = None
    """Instead of a teacher: an NPY, CSV or Parquet file with an image name or index and class probabilities a row."""
    output: Path | None = None
    """Folder to write; data.store if not given."""
    top_k: Annotated[int, Bounds(0)] = 0
    """Classes kept of each row; the others are stored as one sum. 0: all."""
    views: Annotated[int, Bounds(1)] = 1
    """1: images as they are evaluated; n > 1: the mean over n augmented views."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def distill(options: DistillOptions, config: Config) -> None:
    limit_threads(config.system.threads)
    from fastmpl.commands.distill import TeacherSource
    from fastmpl.commands.distill import distill as write

    source = TeacherSource(options.teacher, options.from_probabilities, options.views)
    header = write(config, source, output=options.output, top_k=options.top_k, tell=say)
    if header is None:
        say("Other processes still write their shards; the last of them completes the store.")
        return
    error, size = header.error, sum(shard.bytes for shard in header.shards)
    say(
        f"Stored {header.rows:,} rows of {header.classes:,} classes ({header.kept:,} kept) of {header.teacher}, "
        f"{size / 1e6:.1f} MB. Rounding moved {error.mean_total_variation:.1e} of a row's probability on average, "
        f"{error.largest_total_variation:.1e} at most, and changed the top class of {error.changed_top:,} rows."
    )


@dataclass(frozen=True)
class ProbeOptions:
    """Fits linear classifiers to the stored features of a pretrained network, and keeps the best as a student."""

    config: Positional[Path]
    """TOML file; student.pretrained names the weights."""
    rates: Annotated[tuple[float, ...], Bounds(1e-9, 1000)] = ()
    """Learning rates, tried at once; nine from 0.0001 to 1 if not given. The best on validation images is kept."""
    steps: Annotated[int, Bounds(1)] = 1000
    """Steps of the classifiers."""
    views: Annotated[int, Bounds(0, 1000)] = 0
    """Weak and strong views stored of each training image; 0: the image as it is evaluated."""
    features: Path | None = None
    """Folder of the stored features; features/ in the run's folder if not given."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def probe(options: ProbeOptions, config: Config) -> None:
    limit_threads(config.system.threads)
    from fastmpl.commands.probe import format_probe
    from fastmpl.run.probe import RATES
    from fastmpl.run.probe import probe as fit

    found = fit(
        config,
        rates=options.rates or RATES,
        steps=options.steps,
        views=options.views,
        features=options.features,
        tell=say,
    )
    say(format_probe(config, found))


@dataclass(frozen=True)
class AnalyseOptions:
    """Measures what training does to the labelled and unlabelled images, and to the teacher's labels, over training."""

    config: Positional[Path]
    """TOML file; launch/configs holds examples."""
    seeds: Annotated[int, Bounds(1, 10**6)] = 1
    """Number of seeds; curves and numbers are means over them."""
    output: Path | None = None
    """Folder of the runs and the page; runs/analyse-NAME if not given. Finished runs are not trained again."""
    jobs: Annotated[int, Bounds(0, 10_000)] = 0
    """Runs at a time, each with one thread; 0: one a core."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def analyse(options: AnalyseOptions, config: Config) -> None:
    from fastmpl.study import analyses

    folder = options.output or Path(config.run.output) / f"analyse-{config.run.name}"
    print(f"\nreport: {analyses.run(config, folder, options.seeds, options.jobs or None)}")


@dataclass(frozen=True)
class AblateOptions:
    """Trains a configuration with feedback off, on, shuffled and flipped, or by other methods, and tests differences."""

    config: Positional[Path]
    """TOML file; `fastmpl init` writes one."""
    seeds: Annotated[int, Bounds(2, 10**6)] = 5
    """Number of seeds. Each fixes the split, the random draws and the initial weights for all arms."""
    arms: tuple[Literal["probe", "lora", "supervised", "uda", "mpl", "reduced_mpl"], ...] = ()
    """Methods to compare instead of the kinds of feedback; differences are from the first."""
    output: Path | None = None
    """Folder of the runs and the report; runs/ablate-NAME if not given. Finished runs are not trained again."""
    jobs: Annotated[int, Bounds(0, 10_000)] = 0
    """Runs at a time, each with one thread; 0: one a core."""
    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback of an error."""


def ablate(options: AblateOptions, config: Config) -> None:
    from fastmpl.study import ablation

    folder = options.output or Path(config.run.output) / f"ablate-{config.run.name}"
    say(f"\nreport: {ablation.run(config, folder, options.seeds, options.jobs or None, options.arms)}")
