"""What the experiments share: options, rows of a record, and where a run's accuracies are read.

Test accuracies are those of the last step; beside them stand those of the checkpoint selected on the validation images.
Nothing is selected on test images.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from benchmarks.environment import ROOT
from benchmarks.records import RESULTS, Record, Row, Scalar, save
from fastmpl.study.arms import Outcome

T = TypeVar("T")
R = TypeVar("R")
CONFIGS = ROOT / "launch" / "configs"


def options(name: str, description: str | None, *, steps: int, seeds: int = 5) -> argparse.ArgumentParser:
    """The options that every experiment has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.experiments.{name}", description=description)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--steps", type=int, default=steps, help="of each run; a small number tries the script out")
    parser.add_argument("--jobs", type=int, default=None, help="runs at a time; default: one a core")
    parser.add_argument("--output", type=Path, default=Path("runs") / name, help="run folders; finished runs are kept")
    parser.add_argument("--record", default=name, help="name of the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    return parser


def tell(line: str) -> None:
    print(line, flush=True)


def row(case: str, arm: str, seed: int, test: float, **more: Scalar) -> Row:
    """One arm and seed; `test` is a share, the record holds percent."""
    return {"case": case, "arm": arm, "seed": seed, "value": round(100 * test, 3), **more}


def run_rows(case: str, arm: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """The rows of finished runs: the student's average where it keeps one, else the student."""
    rows = []
    for seed, outcome in enumerate(outcomes):
        last = outcome["last"].get("average") or outcome["last"]["student"]
        more: dict[str, Scalar] = {"seconds": round(outcome["seconds"], 2)}
        if outcome["selected"]:
            more |= {"selected": round(100 * outcome["selected"]["test"], 3)}
            more |= {"validation": round(100 * last["validation"], 3)}
        rows.append(row(case, arm, seed, last["test"], **more))
    return rows


def record(asked: argparse.Namespace, rows: list[Row], baseline: str | None = None, **config: Scalar) -> Path:
    """Saves the record of an experiment."""
    known: dict[str, Scalar] = {"seeds": asked.seeds, "steps": asked.steps, "unit": " %", **config}
    if baseline is not None:
        known["baseline"] = baseline
    path = save(Record(asked.record, "experiment", rows, known), asked.results)
    tell(f"record: {path}")
    return path


def parallel(work: Callable[[T], R], items: Sequence[T], jobs: int | None) -> list[R]:
    """`work` of each item, `jobs` at a time, one thread each. Work and items are sent to fresh processes."""
    if not items:
        return []
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
    with ProcessPoolExecutor(min(jobs or os.cpu_count() or 1, len(items)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, items))
