"""How the cost of a step grows: `python -m benchmarks.bench_growth`; `benchmarks.figures` draws its record.

A step of Meta Pseudo Labels with exact feedback (WRN-10-1, 32 px, 8 + 56 images, 10 classes, one thread) is taken at
several batches, ratios of unlabelled to labelled images, numbers of classes, depths and resolutions, one of them changed
at a time; a store of distributions and a folder's listing at several sizes. Of a step: CPU seconds (median of rounds that
take turns), arithmetic, operators, and the peak of its bytes, counted. Exponents are slopes of log cost over log size, by
least squares over all points, and between the first two and the last two. About three minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from benchmarks.bench_listing import make_tree
from benchmarks.bench_store import PART, draw_peaked
from benchmarks.environment import ROOT, keep_memory
from benchmarks.harness import sample
from benchmarks.records import Record, Row, load, save
from benchmarks.steps import CPU, Size, Step
from fastmpl.analysis.accounting import count_arithmetic, measure
from fastmpl.data.stores.store import Store, open_store
from fastmpl.data.stores.store_writer import StorePlan, StoreWriter
from fastmpl.learners.arithmetic import Precision, computes_bf16

BASE: Final = Size("wrn_10_1", 32, 8, 56)
LOOKED_UP: Final = 1024  # rows of a store
STORE_CLASSES, STORE_KEPT, STORE_REPEATS = 100, 16, 50


class Axis(NamedTuple):
    """What is varied, and the sizes that it gives the step."""

    name: str
    values: tuple[int, ...]
    size: Callable[[int], Size]


AXES: Final = (
    Axis("batch B, U = 7 B", (2, 4, 8, 16, 32, 64), lambda n: replace(BASE, labelled=n, unlabelled=7 * n)),
    Axis("U of one step, B = 8", (8, 16, 32, 56, 112, 224), lambda n: replace(BASE, unlabelled=n)),
    Axis("classes", (10, 100, 1000, 10_000, 100_000), lambda n: replace(BASE, classes=n)),
    Axis("depth", (10, 16, 22, 28, 40), lambda n: replace(BASE, model=f"wrn_{n}_1")),
    Axis("side of an image", (8, 16, 32, 64, 96), lambda n: replace(BASE, pixels=n)),
)
ROWS: Final = (10_000, 100_000, 1_000_000)
FILES: Final = (20_000, 80_000, 320_000)


def measure_steps(axis: Axis, rounds: int, precision: Precision) -> list[Row]:
    """A row for each value of the axis."""
    steps = {n: Step(axis.size(n), kind="exact", precision=precision, channels_last=True) for n in axis.values}
    names = {n: f"{n}" for n in steps}
    taken = sample({names[n]: step for n, step in steps.items()}, rounds, warmup=2)
    rows: list[Row] = []
    for n, step in steps.items():
        account = measure(step, *step.held)
        rows.append(
            {
                "axis": axis.name,
                "value": n,
                "seconds": median(one.cpu for one in taken[names[n]]),
                "arithmetic": count_arithmetic(step),
                "operators": account.operations,
                "bytes": account.peak_bytes,
            }
        )
    return rows


def measure_stores(rows: Sequence[int], repeats: int = STORE_REPEATS) -> list[Row]:
    """Seconds to look up LOOKED_UP random rows, expanded to all classes, and the bytes of the store, by its rows."""
    part = draw_peaked(PART, seed=0)[:, :STORE_CLASSES]
    part /= part.sum(1, keepdims=True)
    found: list[Row] = []
    for count in rows:
        with tempfile.TemporaryDirectory() as folder:
            plan = StorePlan(count, STORE_CLASSES, STORE_KEPT, images="synthetic", teacher="noise")
            writer = StoreWriter(Path(folder), plan)
            for shard in writer.missing():
                first, last = plan.range(shard)
                writer.write(shard, (part[: min(PART, last - start)] for start in range(first, last, PART)))
            writer.finish()
            store, generator = open_store(Path(folder)), np.random.default_rng(1)
            batches = [generator.integers(0, count, LOOKED_UP) for _ in range(repeats)]
            for table in store.tables:
                table.sum()  # warms the cache of pages

            def look_up(batches: list[Any] = batches, store: Store = store) -> None:
                for batch in batches:
                    store.probabilities(batch)

            taken = sample({"look up": look_up}, 5, warmup=1)["look up"]
            size = sum(shard.bytes for shard in store.header.shards)
        seconds = median(one.cpu for one in taken) / repeats
        found.append({"axis": "rows of a store", "value": count, "seconds": seconds, "bytes": size})
    return found


def measure_listings(counts: Sequence[int], folder: Path) -> list[Row]:
    """CPU seconds and bytes of a process to list so many files, split them and order an epoch."""
    found: list[Row] = []
    for count in counts:
        root = make_tree(folder / str(count), count)
        command = [sys.executable, "-m", "benchmarks.bench_listing", "--folder", str(root), "--measure", "folder"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
        steps = {row["step"]: row for row in json.loads(done.stdout)}
        before, after = steps["and fastmpl"], steps["an epoch's order"]
        grown = {key: after[key] - before[key] for key in ("CPU s", "own MB")}
        found.append(
            {
                "axis": "files of a folder",
                "value": count,
                "seconds": grown["CPU s"],
                "bytes": round(1e6 * max(grown["own MB"], 0.1)),
            }
        )
    return found


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent of costs over sizes: the slope of their logarithms by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def fit(points: Sequence[Row]) -> list[Row]:
    """A row for each axis: its exponents, and those of its time at both ends, which differ where the curve bends."""
    by_axis: dict[str, list[Row]] = {}
    for row in points:
        by_axis.setdefault(str(row["axis"]), []).append(row)
    return [_fit_axis(name, rows) for name, rows in by_axis.items()]


def _fit_axis(name: str, rows: list[Row]) -> Row:
    def column(key: str) -> list[float]:
        return [float(row[key]) for row in rows]  # type: ignore[arg-type]

    sizes, seconds = column("value"), column("seconds")

    def exponent(key: str) -> str:
        return f"{round(slope(sizes, column(key)), 2) + 0.0:.2f}" if key in rows[0] else ""

    return {
        "what grows": name,
        "from": f"{sizes[0]:,.0f}",
        "to": f"{sizes[-1]:,.0f}",
        "ms, first and last": ", ".join(_say_ms(each) for each in (seconds[0], seconds[-1])),
        "time": exponent("seconds"),
        "at the small end": f"{round(slope(sizes[:2], seconds[:2]), 2) + 0.0:.2f}",
        "at the large end": f"{round(slope(sizes[-2:], seconds[-2:]), 2) + 0.0:.2f}",
        "arithmetic": exponent("arithmetic"),
        "operators": exponent("operators"),
        "bytes": exponent("bytes"),
    }


def _say_ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def measure_all(rounds: int, precision: Precision, folder: Path) -> list[Row]:
    """The points of every axis. folder: where files to list are made."""
    points = measure_listings(FILES, folder)
    for axis in AXES:
        points += measure_steps(axis, rounds, precision)
        print(axis.name, flush=True)
    return points + measure_stores(ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16" if computes_bf16(CPU) else "float32")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_growth"), help="where files to list are made")
    parser.add_argument("--fit", action="store_true", help="measure nothing: exponents of the points that are recorded")
    asked = parser.parse_args()
    if not asked.fit:
        keep_memory("benchmarks.bench_growth")
        torch.set_num_threads(1)
        facts = {"rounds": asked.rounds, "precision": asked.precision, "network": BASE.model}
        save(Record("growth_points", "table", measure_all(asked.rounds, asked.precision, asked.folder), facts))
    points = load("growth_points")
    fitted = replace(points, name="growth", rows=fit(points.rows))  # of the points' commit and command
    for row in (*points.rows, *fitted.rows):
        print("  ".join(map(str, row.values())))
    print(save(fitted))


if __name__ == "__main__":
    main()
