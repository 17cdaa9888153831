"""Numbers of records inside the sentences of README.md and docs/*.md.

    <!-- mean:RECORD; CASE; ARM -->                 the mean and standard error of one arm of an experiment
    <!-- gain:RECORD; CASES; ARM minus ARM -->      the mean paired difference of two arms; CASES are parted by |, or a
                                                    start with *; of several the smallest and the largest are given
    <!-- value:RECORD; ROW; COLUMN; FORMAT -->      one number or text. ROW: what the row has in some of its columns,
                                                    parted by |. COLUMN: its name, or `COLUMN of ROW` for the ratio to
                                                    another row; `time` and `memory` of a timing record. FORMAT: as in
                                                    Python, .2f where it is left out

Each is followed by the number and by `<!-- / -->`. `python -m benchmarks.tables` writes them.
"""

import fnmatch
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.experiment_tables import across
from benchmarks.records import Record, RecordError, Row, load
from benchmarks.summary import paired

MARK: Final = re.compile(r"(<!-- (mean|gain|value):([^;\s]+); ([^\n]+?) -->)[^\n]*?<!-- / -->")
END: Final = "<!-- / -->"
OPEN: Final = re.compile(r"<!-- (?:mean|gain|value):[^\n]*?-->")


def mean_of(record: Record, case: str, arm: str) -> str:
    """The mean and standard error of one arm, as `across` prints it."""
    rows = [row for row in record.rows if (row.get("case"), row["arm"]) == (case, arm)]
    if not rows:
        raise RecordError(f"Record {record.name!r} has no arm {arm!r} in the case {case!r}.")
    return across(replace(record, rows=rows)).rsplit("| ", 1)[1].removesuffix(" |")


def gain_of(record: Record, cases: str, arms: str) -> str:
    """By how much one arm is better than another: its mean over the seeds, or the range of it over several cases."""
    arm, _, base = arms.partition(" minus ")
    there = {str(row.get("case")) for row in record.rows}
    wanted = [case for pattern in cases.split(" | ") for case in fnmatch.filter(there, pattern)]
    if not wanted:
        raise RecordError(f"Record {record.name!r} has no case {cases!r}; there are: {', '.join(sorted(there))}.")
    found = [paired(record.rows, arm, base, case).mean for case in wanted]
    low, high = f"{min(found):.1f}", f"{max(found):.1f}"
    return low if low == high else f"{low} to {high}"


def value_of(record: Record, row: str, column: str, form: str = ".2f") -> str:
    """A number of one row, or its ratio to that of another row."""
    name, _, base = (column, "", "") if column in record.rows[0] else column.partition(" of ")
    found = _ratio(record, row, name, base) if base else _entry(record, row, name)
    return found if isinstance(found, str) else format(found, form)


def _ratio(record: Record, row: str, name: str, base: str) -> float:
    if (record.kind, name, base) == ("timing", "time", record.config.get("baseline")):
        return 1 / _as_number(_entry(record, row, "speedup_median"))  # they took turns: the ratios within a round
    return _as_number(_entry(record, row, name)) / _as_number(_entry(record, base, name))


def _entry(record: Record, which: str, column: str) -> float | str:
    row = _find(record, which)
    if record.kind == "timing":
        column = {"time": f"{record.config['clock']}_median", "memory": "peak_bytes"}.get(column, column)
    if column not in row:
        raise RecordError(f"Record {record.name!r} has no column {column!r}; there are: {', '.join(row)}.")
    value = row[column]
    return value if isinstance(value, int | float) else str(value)


def _as_number(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        raise RecordError(f"{value!r} is not a number, so it has no ratio.") from None


def _find(record: Record, which: str) -> Row:
    wanted = which.split(" | ")
    found = [row for row in record.rows if set(wanted) <= {str(value) for value in row.values()}]
    if len(found) != 1:
        raise RecordError(f"Record {record.name!r} has {len(found)} rows with {which!r}, and one is needed.")
    return found[0]


MAKERS: Final[dict[str, Callable[..., str]]] = {"mean": mean_of, "gain": gain_of, "value": value_of}


def fill_in(text: str, folder: Path) -> str:
    """The text with every number made anew. Raises RecordError for a missing record, row or column."""

    def make(mark: re.Match[str]) -> str:
        return f"{mark[1]}{MAKERS[mark[2]](load(mark[3], folder), *mark[4].split('; '))}{END}"

    if len(OPEN.findall(text)) != len(MARK.findall(text)):
        raise RecordError(f"A number of a record has no {END!r} after it in its line.")
    return MARK.sub(make, text)
