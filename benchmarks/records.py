"""A record: what was measured, where, by which command. One JSON file each; nothing else is quoted as a result.

Kinds of rows:
    timing      one per variant, made by `harness.compare`
    experiment  one per arm and seed: {"arm", "seed", "value"}, and "case" where there are several settings
    table       anything else: columns as they are
"""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Literal

from benchmarks.environment import command, commit, environment, now

RESULTS = Path(__file__).parent / "results"

Scalar = str | int | float | bool | None
Row = dict[str, Scalar | list[float]]


class RecordError(ValueError):
    """A record or a table is missing or malformed; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Record:
    """`config` is what was asked (sizes, rounds, the baseline's name); `rows` is what was found."""

    name: str
    kind: Literal["timing", "experiment", "table"]
    rows: list[Row]
    config: dict[str, Scalar]
    command: str = dataclasses.field(default_factory=command)
    created: str = dataclasses.field(default_factory=now)
    commit: str = dataclasses.field(default_factory=commit)
    environment: dict[str, str | int | float | bool] = dataclasses.field(default_factory=environment)


def save(record: Record, folder: Path = RESULTS) -> Path:
    """Writes results/<name>.json, replacing an older record of that name in one move."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", record.name):
        raise RecordError(f"A record's name is 1 to 64 of A-Z a-z 0-9 . _ -, and {record.name!r} is not.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(_as_json(record))
    temporary.replace(path)
    return path


def _as_json(record: Record) -> str:
    """A line for each value, and one for a list of numbers however long."""
    text = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False)
    return re.sub(r"\[\n[-+.\deE,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"


def load(name: str, folder: Path = RESULTS) -> Record:
    """Reads results/<name>.json. Raises RecordError where it is missing or not a record."""
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise RecordError(f"There is no record {name!r} in {folder.name}/; there are: {known}.")
    try:
        return Record(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise RecordError(f"{folder.name}/{path.name} is not a record: {error}.") from error
