"""Finished runs beside each other: those with the same settings are seeds of one arm, and arms are paired by seed."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from scipy.stats import binomtest

from fastmpl.config import Config, difference
from fastmpl.config.paths import suggest_run
from fastmpl.errors import ConfigError, StorageError
from fastmpl.paired_statistics import mean, standard_error
from fastmpl.report import ArmResult, Comparison, compared_rows, points, read_run, write_comparison
from fastmpl.report.reading import Result, RunRecord
from fastmpl.run.resuming import HARMLESS
from fastmpl.telemetry.predictions import Predictions

# Keys in which the runs of one arm may differ: none changes what is learned or which network is kept.
OF_ONE_RUN: Final = {"run.seed", "run.name"} | HARMLESS - {"run.evaluate_every", "run.patience"}
WIDTH: Final = 80  # columns of a terminal
LONGEST: Final = 48  # letters of an arm's name that is made of its settings


class FinishedRun(NamedTuple):
    """A run with its configuration and the network that its report speaks of."""

    folder: Path
    config: Config
    record: RunRecord
    network: Result


class Arm(NamedTuple):
    """Runs that differ in their seed alone, in the order of their seeds."""

    name: str
    runs: Sequence[FinishedRun]


class Compared(NamedTuple):
    """The runs as a table, and remarks on what makes it less than fair."""

    table: Comparison
    remarks: Sequence[str]


def _read_finished(folder: Path) -> FinishedRun:
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no config.toml.{suggest_run(folder)}")
    record = read_run(folder)
    if record.config is None:
        raise ConfigError(f"{folder} has settings that this version cannot read: {' '.join(record.problems)}")
    found = record.headline
    if found is None:
        raise ConfigError(f"{folder} has no results: `fastmpl train {folder / 'config.toml'}` finishes the run.")
    return FinishedRun(folder, record.config, record, found)


def _differing_keys(a: Config, b: Config) -> list[str]:
    return [key for key in difference(a, b) if key not in OF_ONE_RUN]


def _group(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """The runs by their settings, in the order in which they were named. Raises ConfigError for two of one seed."""
    groups: list[list[FinishedRun]] = []
    for run in runs:
        group = next((group for group in groups if not _differing_keys(group[0].config, run.config)), None)
        if group is None:
            groups.append([run])
            continue
        for other in group:
            if other.config.run.seed == run.config.run.seed:
                raise ConfigError(f"{other.folder} and {run.folder} have the same settings and seed: name one of them.")
        group.append(run)
    return [sorted(group, key=lambda run: run.config.run.seed) for group in groups]


def _value(config: Config, key: str) -> str:
    section, name = key.split(".")
    value = getattr(getattr(config, section), name)
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)


def _settings(groups: Sequence[Sequence[FinishedRun]]) -> dict[str, list[str]]:
    """The keys in which the groups differ, each with its value in every group."""
    first = groups[0][0].config
    keys = dict.fromkeys(key for group in groups[1:] for key in _differing_keys(first, group[0].config))
    return {key: [_value(group[0].config, key) for group in groups] for key in keys}


def _names(groups: Sequence[Sequence[FinishedRun]], settings: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the arms: their settings where these are short and tell them apart, else the folder of the first run."""
    said = [", ".join(f"{key} = {values[place]}" for key, values in settings.items()) for place in range(len(groups))]
    if len(groups) > 1 and max(map(len, said)) <= LONGEST:
        return said
    folders = [group[0].folder.resolve().name for group in groups]
    return folders if len(set(folders)) == len(folders) else [str(group[0].folder) for group in groups]


def _note_images(run: FinishedRun, base: FinishedRun, split: str) -> str:
    """How many images only one of two runs gets right, with the sign test's probability of such an imbalance by chance."""
    found = [_answers(one, split) for one in (run, base)]
    if found[0] is None or found[1] is None or found[0].names.tolist() != found[1].names.tolist():
        return ""
    here, there = found[0].right, found[1].right
    only_here, only_there = int((here & ~there).sum()), int((there & ~here).sum())
    p = float(binomtest(only_here, only_here + only_there).pvalue) if only_here + only_there else 1.0
    return f"right here alone: {only_here} images; there alone: {only_there} (sign test p = {p:.2g})"


def _answers(run: FinishedRun, split: str) -> Predictions | None:
    return run.record.record.splits.get(split) if run.record.record is not None else None


def _remarks(arms: Sequence[Arm], split: str) -> list[str]:
    runs = [run for arm in arms for run in arm.runs]
    said = []
    if split == "validation":
        said.append("Not every run has test images: validation accuracies, by which a network may have been selected.")
    data = {(run.config.data.source, run.config.data.root) for run in runs}
    if len(data) > 1:
        said.append("The runs are of different data: their accuracies are not of the same images.")
    seeds = {tuple(run.config.run.seed for run in arm.runs) for arm in arms}
    if len(seeds) > 1:
        said.append("The arms have different seeds: differences are over the seeds that both arms have.")
    return said


def _describe(run: FinishedRun) -> str:
    data = run.config.data
    labels = f"{data.labels:,} labels" if data.labels else "all labels"
    return f"{data.source}, {labels}"


def compare_runs(folders: Sequence[Path]) -> Compared:
    """The runs in `folders` as a table, whose first arm is that of the first folder.

    Raises ConfigError where one is not a finished run, or where two are the same.
    """
    if len(folders) < 2:
        raise ConfigError("fastmpl compare needs the folders of two or more runs.")
    groups = _group([_read_finished(folder) for folder in folders])
    settings = _settings(groups)
    arms = [Arm(name, group) for name, group in zip(_names(groups, settings), groups, strict=True)]
    tested = all(math.isfinite(run.network.test) for arm in arms for run in arm.runs)
    split = "test" if tested else "validation"
    base = arms[0]

    def result(arm: Arm) -> ArmResult:
        alone = arm is not base and len(arm.runs) == len(base.runs) == 1
        return ArmResult(
            arm.name,
            [getattr(run.network, split) for run in arm.runs],
            _note_images(arm.runs[0], base.runs[0], split) if alone else "",
            [run.config.run.seed for run in arm.runs],
        )

    found = Comparison(
        f"Accuracy on {split} images",
        f"{_describe(base.runs[0])}. Of each run the network that its report speaks of.",
        [result(arm) for arm in arms],
        "" if len(arms) > 1 else "All runs have the same settings and differ in their seed alone.",
        base.name,
        [(key, values) for key, values in settings.items()],
    )
    return Compared(found, _remarks(arms, split))


def format_comparison(compared: Compared) -> str:
    """The table for a terminal: an arm takes a line for its name and one for its numbers."""
    table = compared.table
    lines = [f"{table.title}, ± standard error; minus the first [95 % interval]", ""]
    for row in compared_rows(table):
        seeds = len(row.arm.accuracies)
        error = standard_error(row.arm.accuracies)
        shown = f"{100 * mean(row.arm.accuracies):5.1f} %" + (f" ± {100 * error:.1f}" if math.isfinite(error) else "")
        apart = f"   {points(row.difference)}" if row.difference is not None else ""
        lines += [row.arm.name, f"  {shown}   {seeds} seed{'s' if seeds > 1 else ''}{apart}"]
        lines += [f"  {row.arm.note}"] if row.arm.note else []
    remarks = [textwrap.fill(remark, WIDTH) for remark in compared.remarks]
    return "\n".join([*lines, *(["", *remarks] if remarks else [])])


def write_page(path: Path, compared: Compared) -> Path:
    """Writes the table as a page. Raises StorageError where it cannot be written."""
    runs = sum(len(arm.accuracies) for arm in compared.table.arms)
    try:
        return write_comparison(path, f"Comparison of {runs} runs", [compared.table], compared.remarks)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from error
