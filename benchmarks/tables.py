"""The tables of README.md and docs/*.md, made of records: no number in them is typed by hand.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`, NAME being a record's; `<!-- table:NAME across -->`
gives an experiment's arms a row and its cases a column each, `down` the other way round, `minus ARM` likewise with paired
differences from that arm; `<!-- table:NAME of VALUE -->` has the rows whose first entry is VALUE. A mark that ends in
`keeping A | B` shows only the arms, cases, variants or steps A and B. Numbers within a sentence or a cell:
`benchmarks.values`. Pictures: `benchmarks.figures`.

`python -m benchmarks.tables` rewrites them all; `--check` writes nothing and fails where a file would change, which a test
does too. `--ages` says of each record how far the code has moved on since.
"""

import argparse
import re
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.ages import ages
from benchmarks.environment import ROOT
from benchmarks.experiment_tables import across, down, each_arm, markdown, minus
from benchmarks.records import RESULTS, Record, RecordError, Row, load
from benchmarks.values import fill_in

MARK = r"<!-- table:(\S+)( across| down| minus [^\n]+?| of \S+?)?( keeping [^\n]+?)? -->"
START = re.compile(MARK)
TABLE = re.compile(MARK + r"\n(?:(?!<!-- table:).)*?<!-- /table -->", re.DOTALL)

MINUS, OF, KEEPING = "minus ", "of ", "keeping "
NAMED_BY = ("arm", "case", "variant", "step")  # the columns by which `keeping` chooses


def _number(row: Row, key: str) -> float:
    value = row[key]
    if not isinstance(value, int | float):
        raise RecordError(f"{key} = {value!r} is not a number.")
    return float(value)


def _seconds(value: float) -> str:
    """Three significant digits in the unit that suits."""
    scale, unit = (1.0, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "us")
    return f"{value * scale:.3g} {unit}"


# Columns that some timings have beside the usual ones, and how their values are shown.
EXTRA: dict[str, Callable[[float], str]] = {"convolutions": "{:.0%}".format, "error": "{:.2g}".format}


def _if_known(row: Row, key: str, show: Callable[[float], str]) -> str:
    return "" if row[key] is None else show(_number(row, key))


def _timing(record: Record) -> str:
    clock = record.config["clock"]
    extra = {key: show for key, show in EXTRA.items() if key in record.rows[0]}
    body = []
    for row in record.rows:
        low, middle, high = (_number(row, f"{clock}_{q}") for q in ("q1", "median", "q3"))
        ratio_low, ratio, ratio_high = (_number(row, f"speedup_{q}") for q in ("q1", "median", "q3"))
        is_baseline = row["variant"] == record.config["baseline"]
        body.append(
            [
                str(row["variant"]),
                f"{_seconds(middle)} ({_seconds(low)} to {_seconds(high)})",
                "baseline" if is_baseline else f"{ratio:.2f}x ({ratio_low:.2f} to {ratio_high:.2f})",
                _if_known(row, "peak_bytes", lambda value: f"{value / 2**20:.1f} MiB"),
                _if_known(row, "operations", "{:.0f}".format),
                *(_if_known(row, key, show) for key, show in extra.items()),
            ]
        )
    unit = "CPU time" if clock == "cpu" else "time"
    return markdown(("variant", f"{unit} a call", "speed", "peak bytes", "operators", *extra), body)


class View(NamedTuple):
    """What of a record a reader is shown; the record holds all of it."""

    columns: dict[str, str]  # its columns, and what they are called in the table
    only: Mapping[str, Container[object]] = MappingProxyType({})  # rows with these values alone


VIEWS = {
    "batch-norm": View(
        {
            "dtype": "dtype",
            "shape": "shape",
            "forward and backward, ours (ms)": "ours, ms",
            "forward and backward, torch (ms)": "torch, ms",
            "speedup": "speed",
            "forward speedup": "forward alone",
            "jvp speedup": "JVP",
            "jvp with its forward, over a forward": "JVP over a forward",
            "saved bytes, of torch's": "saved bytes",
            "kernels alone (ms)": "kernels alone, ms",
            "copy (ms)": "a copy, ms",
        }
    ),
    "growth": View(
        {
            "what grows": "what grows",
            "from": "from",
            "to": "to",
            "ms, first and last": "ms, first and last",
            "time": "time, exponent",
            "at the small end": "small end",
            "at the large end": "large end",
            "arithmetic": "arithmetic",
            "operators": "operators",
            "bytes": "bytes",
        }
    ),
    "optimiser": View(
        {"network": "network", "op": "op", "ours (ms)": "ours, ms", "torch (ms)": "torch, ms", "speedup": "speed"}
    ),
    "ranks": View(
        {
            "ranks": "ranks",
            "seconds a step": "seconds a step",
            "throughput of one rank's": "throughput, of one rank's",
            "CPU seconds of one rank's": "CPU time, of one rank's",
            "messages a step": "messages a step",
            "MB a step": "MB a step",
            "ms of transfer": "transfer, ms",
            "ms of waiting": "waiting, ms",
        }
    ),
    "kernel_compile": View(
        {
            "kernel": "kernel",
            "dtype": "dtype",
            "classes": "classes",
            "registers sm_80 / 90 / 100": "registers sm_80 / 90 / 100",
            "spills": "spills",
            "bytes a row, at least": "bytes a row, at least",
            "bytes asked for, of these": "asked for",
            "launches": "launches",
        },
        only={"classes": {10, 1000, 21841}},
    ),
    "batch_norm_compile": View(
        {
            "kernel": "kernel",
            "dtype": "dtype",
            "registers sm_80 / 90 / 100": "registers sm_80 / 90 / 100",
            "loads in flight": "loads in flight",
            "waits for 512 parts": "waits for 512 parts",
            "spills": "spills",
        }
    ),
}


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(record: Record) -> str:
    view = VIEWS.get(record.name, View({key: key for key in record.rows[0]}))
    rows = [row for row in record.rows if all(row.get(key) in values for key, values in view.only.items())]
    return markdown(list(view.columns.values()), [[_cell(row.get(key, "")) for key in view.columns] for row in rows])


def render(record: Record, how: str = "") -> str:
    """The table of a record in Markdown, with a line under it that says where its numbers are from.

    how: of an experiment, "across", "down" or "minus ARM"; see the module.
    """
    if not record.rows:
        raise RecordError(f"Record {record.name!r} has no rows.")
    if how and record.kind != "experiment":
        raise RecordError(f"Record {record.name!r} has no cases to stand side by side.")
    tables = {"timing": _timing, "experiment": each_arm, "table": _plain, "across": across, "down": down}
    if how.startswith(MINUS):
        table = minus(record, how.removeprefix(MINUS))
    else:
        table = tables[how or record.kind](record)
    there = record.environment
    dirty = " with uncommitted changes" if there["dirty"] is True else ""
    rounds = f"n = {record.config['rounds']}, median and quartiles. " if record.kind == "timing" else ""
    if how:
        rounds = f"{record.config['seeds']} seeds. "
    return (
        f"{table}\n\n<sub>{rounds}{there['gpu'] or there['cpu']}, {there['threads']} of {there['cores']} cores, torch "
        f"{there['torch']}, commit {record.commit[:9]}{dirty}, {record.created[:10]}. `{record.command}`</sub>"
    )


def _part(record: Record, value: str) -> Record:
    """The rows of a record whose first entry is `value`."""
    return replace(record, rows=[row for row in record.rows if next(iter(row.values())) == value])


def _choose(record: Record, names: Sequence[str]) -> Record:
    """The rows of a record that `keeping` asks for: of each column that any of the names is in, those with such a name."""
    rows, found = record.rows, set[str]()
    for column in NAMED_BY:
        there = {str(row[column]) for row in record.rows if column in row} & set(names)
        found |= there
        if there:
            rows = [row for row in rows if str(row.get(column)) in there]
    if missing := [name for name in names if name not in found]:
        raise RecordError(f"Record {record.name!r} has no {', '.join(map(repr, missing))}.")
    return replace(record, rows=rows)


def update(text: str, folder: Path = RESULTS) -> str:
    """The text with every table and number made anew. Raises RecordError for a missing record, and for an open mark."""
    closed = {match.start() for match in TABLE.finditer(text)}
    for start in START.finditer(text):
        if start.start() not in closed:
            raise RecordError(f"Table {start[1]!r} has no '<!-- /table -->' after it.")

    def make(mark: re.Match[str]) -> str:
        record, how = load(mark[1], folder), (mark[2] or "").strip()
        if mark[3]:
            record = _choose(record, mark[3].strip().removeprefix(KEEPING).split(" | "))
        if how.startswith(OF):
            record, how = _part(record, how.removeprefix(OF)), ""
        table = render(record, how)
        return f"<!-- table:{mark[1]}{mark[2] or ''}{mark[3] or ''} -->\n{table}\n<!-- /table -->"

    return fill_in(TABLE.sub(make, text), folder)


def documents() -> list[Path]:
    """The files that may hold tables."""
    return [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()]


def _bring_pictures(results: Path, *, write: bool) -> int:
    """Draws the pictures; returns how many differ from the files, which it writes anew if asked."""
    from benchmarks.figures import FIGURES, draw_all  # which imports torch and matplotlib

    stale = 0
    for name, content in draw_all(results).items():
        path = FIGURES / name
        if path.is_file() and path.read_bytes() == content:
            continue
        stale += 1
        if write:
            path.write_bytes(content)
        else:
            print(f"{name}: a picture differs from its record; run python -m benchmarks.tables", file=sys.stderr)
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes the tables of the documentation anew from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file would change")
    parser.add_argument("--ages", action="store_true", help="write nothing; say how old each record is")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("files", nargs="*", type=Path, help="default: README.md and docs/**/*.md")
    options = parser.parse_args(arguments)
    if options.ages:
        for age in ages(options.results):
            print(age)
        return 0
    stale = 0
    for path in options.files or documents():
        text = path.read_text()
        try:
            fresh = update(text, options.results)
        except RecordError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            return 2
        if fresh == text:
            continue
        stale += 1
        if options.check:
            print(f"{path.name}: a table differs from its record; run python -m benchmarks.tables", file=sys.stderr)
        else:
            path.write_text(fresh)
    if not options.files:
        stale += _bring_pictures(options.results, write=not options.check)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
