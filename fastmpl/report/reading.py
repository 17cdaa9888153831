"""What a run left in its folder, as far as it is there: a report of a run that failed is worth the most.

Nothing here trusts the folder: what is missing or cannot be read becomes a sentence of the report.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastmpl.config import Config, ConfigError, difference, load
from fastmpl.step.step_metrics import StepMetrics
from fastmpl.telemetry.metrics_file import Evaluation, read_lines
from fastmpl.telemetry.predictions import Record, read_record
from fastmpl.telemetry.training_analysis import Targets, TrainingAccuracy, read_accuracies, read_targets
from fastmpl.untrusted import read_bytes, read_json_object

NETWORKS: Final = ("student", "average", "teacher")
SPLITS: Final = ("validation", "test")
LARGEST: Final = 1e30
LARGEST_CONFIG: Final = 1 << 20  # bytes that are shown
COLUMNS: Final = ("step", "seconds", "images_per_second", *StepMetrics._fields)


class Changed(NamedTuple):
    """A key of the configuration that differs from its default."""

    key: str
    value: object
    default: object


class Result(NamedTuple):
    """One network's accuracies, shares in [0, 1]; NaN where it was not measured."""

    name: str
    step: int | None
    validation: float
    test: float


class RunRecord(NamedTuple):
    """A run as its report needs it."""

    name: str
    config: Config | None
    text: str  # of config.toml
    changed: Sequence[Changed]
    train: Mapping[str, Sequence[float]]  # a column for each of COLUMNS
    evaluations: Sequence[Evaluation]
    last: Sequence[Result]
    selected: Result | None
    headline: Result | None  # the network in student.safetensors, with its description for a name
    training: Sequence[TrainingAccuracy]  # of run.analyse, as the next
    targets: Sequence[Targets]
    seconds: float
    versions: Mapping[str, str]  # as recorded when it trained
    problems: Sequence[str]
    record: Record | None = None  # of single images; None where the run has none


def number(value: object) -> float:
    """NaN for whatever is no finite number of a size that can be drawn."""
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else math.nan


def _value(config: Config, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _read_config(path: Path) -> tuple[Config | None, str, list[str]]:
    try:
        text = read_bytes(path, LARGEST_CONFIG).decode("utf-8", "replace")
    except OSError as error:
        return None, "", [f"{path.name} cannot be read: {error.strerror}."]
    try:
        return load(path), text, []
    except ConfigError as error:
        return None, text, str(error).splitlines()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_results(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    if not path.exists():
        return {}, [f"The run has not ended: there is no {path.name} yet."]
    try:
        return read_json_object(path), []
    except (OSError, ValueError) as error:
        return {}, [f"{path.name} cannot be read as JSON: {error}."]


def _result(name: str, step: object, accuracies: Mapping[str, Any]) -> Result:
    step = step if isinstance(step, int) else None
    return Result(name, step, number(accuracies.get("validation")), number(accuracies.get("test")))


def _last_results(results: Mapping[str, Any], config: Config | None) -> list[Result]:
    """The networks of the last step; fine-tuning, which has a row of its own, comes after it."""
    step = results.get("steps")
    if config is not None and isinstance(step, int):
        step = min(step, config.run.steps)
    rows = [_result(f"{network}, last", step, _mapping(of)) for network, of in _mapping(results.get("last")).items()]
    tuned = _mapping(results.get("finetuned"))
    return rows + ([_result("student, fine-tuned", None, tuned)] if tuned else [])


def _headline(results: Mapping[str, Any], last: Sequence[Result]) -> Result | None:
    """What a run says of its weights. A run of a version that selected none left the network of its last step."""
    found = _mapping(results.get("headline"))
    if found:
        return _result(str(found.get("description")), found.get("step"), found)
    named = {row.name: row for row in last}
    left = (named.get(name) for name in ("student, fine-tuned", "average, last", "student, last"))
    return next((row for row in left if row is not None), None)


def _known_evaluations(lines: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
    rows = [Evaluation._make(line.get(name) for name in Evaluation._fields) for line in lines]
    known = [row for row in rows if row.network in NETWORKS and row.split in SPLITS and math.isfinite(number(row.step))]
    return [row._replace(accuracy=number(row.accuracy), loss=number(row.loss)) for row in known]


def _changed_keys(config: Config) -> list[Changed]:
    default = Config.model_validate({})
    return [Changed(key, _value(config, key), _value(default, key)) for key in difference(config, default)]


def _read_notes(path: Path) -> list[str]:
    """How the run was executed otherwise than asked."""
    try:
        notes = read_json_object(path).get("notes")
    except (OSError, ValueError):
        return []
    return [str(note) for note in notes] if isinstance(notes, list) else []


def _read_predictions(folder: Path) -> tuple[Record | None, list[str]]:
    try:
        return read_record(folder), []
    except ValueError as error:
        return None, [f"{error} The report has no pictures of single images."]


def read_run(folder: Path) -> RunRecord:
    """The run in `folder`; raises nothing that the folder's content could cause."""
    config, text, unreadable = _read_config(folder / "config.toml")
    results, missing = _read_results(folder / "results.json")
    record, damaged = _read_predictions(folder)
    lines = read_lines(folder)
    trained = [line for line in lines if line.get("kind") == "train"]
    selected, last = _mapping(results.get("selected")), _last_results(results, config)
    return RunRecord(
        name=folder.resolve().name,
        config=config,
        text=text,
        changed=_changed_keys(config) if config else [],
        train={name: [number(line.get(name)) for line in trained] for name in COLUMNS},
        evaluations=_known_evaluations([line for line in lines if line.get("kind") == "evaluation"]),
        last=last,
        selected=_result(str(selected.get("network")), selected.get("step"), selected) if selected else None,
        headline=_headline(results, last),
        training=read_accuracies(lines),
        targets=read_targets(lines),
        seconds=number(results.get("seconds")),
        versions={str(name): str(version) for name, version in _mapping(results.get("versions")).items()},
        problems=unreadable + missing + damaged + _read_notes(folder / "STATUS.json"),
        record=record,
    )
