"""The tables of README.md and docs/*.md, made of records: no number in them is typed by hand.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`, NAME being a record's; `<!-- table:NAME across -->`
gives an experiment's arms a row and its cases a column each, `<!-- table:NAME of VALUE -->` the rows whose first entry is
VALUE. `python -m benchmarks.tables` rewrites them all; `--check` writes nothing and fails where a file would change, which
a test does too.
"""

import argparse
import math
import re
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.environment import ROOT
from benchmarks.records import RESULTS, Record, RecordError, Row, load
from benchmarks.summary import mean, paired, values

START = re.compile(r"<!-- table:(\S+)( across| of \S+)? -->")
TABLE = re.compile(r"<!-- table:(\S+)( across| of \S+)? -->\n(?:(?!<!-- table:).)*?<!-- /table -->", re.DOTALL)


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *body))


def _number(row: Row, key: str) -> float:
    value = row[key]
    if not isinstance(value, int | float):
        raise RecordError(f"{key} = {value!r} is not a number.")
    return float(value)


def _seconds(value: float) -> str:
    """Three significant digits in the unit that suits."""
    scale, unit = (1.0, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "us")
    return f"{value * scale:.3g} {unit}"


def _timing(record: Record) -> str:
    clock = record.config["clock"]
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
                f"{_number(row, 'peak_bytes') / 2**20:.1f} MiB",
                f"{_number(row, 'operations'):.0f}",
            ]
        )
    unit = "CPU time" if clock == "cpu" else "time"
    return _markdown(("variant", f"{unit} a call", "speed", "peak bytes", "operators"), body)


def _in_order(rows: list[Row], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None))


def _experiment(record: Record) -> str:
    """Mean and standard error of each arm; with config["baseline"], also the paired difference from that arm.

    config["unit"] follows each mean (such as " %"), config["digits"] is the number of decimals (1).
    """
    unit, digits = str(record.config.get("unit", "")), int(record.config.get("digits") or 1)
    baseline = record.config.get("baseline")
    cases: list[str | None] = [*_in_order(record.rows, "case")] or [None]
    body = []
    for case in cases:
        rows = [row for row in record.rows if row.get("case") == case]
        for arm in _in_order(rows, "arm"):
            centre, error, n = mean(list(values(rows, arm, case).values()))
            spread = "" if math.isnan(error) else f" ± {error:.{digits}f}"
            cells = [*([case] if case else []), arm, f"{centre:.{digits}f}{spread}{unit}", str(n)]
            if baseline is not None:
                cells.append("" if arm == baseline else _difference(rows, arm, str(baseline), case, digits))
            body.append(cells)
    header = [*(["case"] if cases != [None] else []), "arm", "mean ± standard error", "seeds"]
    if baseline is not None:
        header.append(f"minus {baseline} (95 % interval)")
    return _markdown(header, body, numbers_from=header.index("arm") + 1)


def _across(record: Record) -> str:
    """Mean and standard error, an arm a row and a case a column; empty where an arm is not in a case."""
    digits, cases = int(record.config.get("digits") or 1), _in_order(record.rows, "case")
    body = []
    for arm in _in_order(record.rows, "arm"):
        cells = [arm]
        for case in cases:
            rows = [row for row in record.rows if row.get("case") == case and row["arm"] == arm]
            centre, error, _ = mean(list(values(rows, arm, case).values())) if rows else (0.0, 0.0, 0)
            cells.append(f"{centre:.{digits}f} ± {error:.{digits}f}" if rows else "")
        body.append(cells)
    return _markdown((f"mean ± standard error{record.config.get('unit', '')}", *cases), body)


def _difference(rows: list[Row], arm: str, baseline: str, case: str | None, digits: int) -> str:
    centre, low, high, _ = paired(rows, arm, baseline, case)
    interval = "" if math.isnan(low) else f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"{centre:+.{digits}f}{interval}"


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
        }
    ),
    "optimiser": View(
        {"network": "network", "op": "op", "ours (ms)": "ours, ms", "torch (ms)": "torch, ms", "speedup": "speed"}
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
}


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(record: Record) -> str:
    view = VIEWS.get(record.name, View({key: key for key in record.rows[0]}))
    rows = [row for row in record.rows if all(row.get(key) in values for key, values in view.only.items())]
    return _markdown(list(view.columns.values()), [[_cell(row.get(key, "")) for key in view.columns] for row in rows])


def render(record: Record, across: bool = False) -> str:
    """The table of a record in Markdown, with a line under it that says where its numbers are from.

    `across`: an experiment's cases stand side by side.
    """
    if not record.rows:
        raise RecordError(f"Record {record.name!r} has no rows.")
    if across and record.kind != "experiment":
        raise RecordError(f"Record {record.name!r} has no cases to stand side by side.")
    tables = {"timing": _timing, "experiment": _across if across else _experiment, "table": _plain}
    table = tables[record.kind](record)
    there = record.environment
    dirty = " with uncommitted changes" if there["dirty"] else ""
    rounds = f"n = {record.config['rounds']}, median and quartiles. " if record.kind == "timing" else ""
    if across:
        rounds = f"{record.config['seeds']} seeds. "
    return (
        f"{table}\n\n<sub>{rounds}{there['gpu'] or there['cpu']}, {there['threads']} of {there['cores']} cores, torch "
        f"{there['torch']}, commit {record.commit[:9]}{dirty}, {record.created[:10]}. `{record.command}`</sub>"
    )


def _part(record: Record, value: str) -> Record:
    """The rows of a record whose first entry is `value`."""
    return replace(record, rows=[row for row in record.rows if next(iter(row.values())) == value])


def update(text: str, folder: Path = RESULTS) -> str:
    """The text with every table made anew. Raises RecordError for a missing record and for a table without an end."""
    closed = {match.start() for match in TABLE.finditer(text)}
    for start in START.finditer(text):
        if start.start() not in closed:
            raise RecordError(f"Table {start[1]!r} has no '<!-- /table -->' after it.")

    def made(mark: re.Match[str]) -> str:
        record, how = load(mark[1], folder), mark[2] or ""
        if how.startswith(" of "):
            record = _part(record, how.removeprefix(" of "))
        table = render(record, across=how == " across")
        return f"<!-- table:{mark[1]}{mark[2] or ''} -->\n{table}\n<!-- /table -->"

    return TABLE.sub(made, text)


def documents() -> list[Path]:
    """The files that may hold tables."""
    return [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes the tables of the documentation anew from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file would change")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("files", nargs="*", type=Path, help="default: README.md and docs/**/*.md")
    options = parser.parse_args(arguments)
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
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
