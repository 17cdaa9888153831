"""An experiment's record as a table: every arm with its difference from one of them, or arms and cases crosswise."""

import math
import statistics
from collections.abc import Sequence

from benchmarks.records import Record, Row
from benchmarks.summary import mean, paired, values


def markdown(header: Sequence[str], body: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *body))


def _in_order(rows: list[Row], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None))


def each_arm(record: Record) -> str:
    """Mean and standard error of each arm; with config["baseline"], also the paired difference from that arm.

    config["unit"] follows each mean (such as " %"), config["digits"] is the number of decimals (1). Rows with "cpu_seconds"
    have two columns more: their median, and the median of their ratios to the baseline's of the same seed.
    """
    unit, digits = str(record.config.get("unit", "")), _digits(record)
    baseline = record.config.get("baseline")
    cases: list[str | None] = [*_in_order(record.rows, "case")] or [None]
    counted = "cpu_seconds" in record.rows[0]
    body = []
    for case in cases:
        rows = [row for row in record.rows if row.get("case") == case]
        for arm in _in_order(rows, "arm"):
            centre, error, n = mean(list(values(rows, arm, case).values()))
            spread = "" if math.isnan(error) else f" ± {error:.{digits}f}"
            cells = [*([case] if case else []), arm, f"{centre:.{digits}f}{spread}{unit}", str(n)]
            if baseline is not None:
                cells.append("" if arm == baseline else _difference(rows, arm, str(baseline), case, digits))
            if counted:
                cells += _cpu_seconds(rows, arm, str(baseline))
            body.append(cells)
    header = [*(["case"] if cases != [None] else []), "arm", "mean ± standard error", "seeds"]
    if baseline is not None:
        header.append(f"minus {baseline} (95 % interval)")
    if counted:
        header += ["CPU seconds", f"of {baseline}"]
    return markdown(header, body, numbers_from=header.index("arm") + 1)


def _cpu_seconds(rows: list[Row], arm: str, baseline: str) -> list[str]:
    """The median of an arm's CPU seconds, and that of its ratios to the baseline's, seed by seed."""

    def of(name: str) -> dict[object, float]:
        return {row["seed"]: float(str(row["cpu_seconds"])) for row in rows if row["arm"] == name}

    mine, others = of(arm), of(baseline)
    ratios = [seconds / others[seed] for seed, seconds in mine.items() if seed in others]
    return [f"{statistics.median(mine.values()):.1f}", f"{statistics.median(ratios):.2f}x" if ratios else ""]


def across(record: Record) -> str:
    """Mean and standard error, an arm a row and a case a column; empty where an arm is not in a case."""
    cases = _in_order(record.rows, "case")
    body = [[arm, *(_mean(record, arm, case) for case in cases)] for arm in _in_order(record.rows, "arm")]
    return markdown((f"mean ± standard error{record.config.get('unit', '')}", *cases), body)


def down(record: Record) -> str:
    """Mean and standard error, a case a row and an arm a column."""
    arms = _in_order(record.rows, "arm")
    body = [[case, *(_mean(record, arm, case) for arm in arms)] for case in _in_order(record.rows, "case")]
    return markdown((f"mean ± standard error{record.config.get('unit', '')}", *arms), body)


def minus(record: Record, baseline: str) -> str:
    """What each arm has more than `baseline`, paired by seed, with its 95 % interval: a case a row, an arm a column."""
    arms = [arm for arm in _in_order(record.rows, "arm") if arm != baseline]
    body = []
    for case in _in_order(record.rows, "case"):
        rows = [row for row in record.rows if row.get("case") == case]
        there = {row["arm"] for row in rows}
        body.append(
            [case, *(_difference(rows, arm, baseline, case, _digits(record)) if arm in there else "" for arm in arms)]
        )
    return markdown((f"minus {baseline} (95 % interval)", *arms), body)


def _digits(record: Record) -> int:
    return int(record.config.get("digits") or 1)


def _mean(record: Record, arm: str, case: str) -> str:
    rows = [row for row in record.rows if row.get("case") == case and row["arm"] == arm]
    if not rows:
        return ""
    centre, error, _ = mean(list(values(rows, arm, case).values()))
    return f"{centre:.{_digits(record)}f} ± {error:.{_digits(record)}f}"


def _difference(rows: list[Row], arm: str, baseline: str, case: str | None, digits: int) -> str:
    centre, low, high, _ = paired(rows, arm, baseline, case)
    interval = "" if math.isnan(low) else f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"{centre:+.{digits}f}{interval}"
