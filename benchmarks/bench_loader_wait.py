"""How long the trainer waits for its batches while a step takes twice as long as the loader needs for a batch.

`python -m benchmarks.bench_loader_wait`. The trainer is the one that `fastmpl train` runs, with its loader, clock and
log. The step alone is exchanged: it sleeps, as one on a GPU leaves the cores to the loader. A batch is two views of
--unlabelled JPEGs of 500 x 375 pixels at 224, and one of --labelled. How long the loader needs is measured just before,
in the steady state, with nothing else going on. The first batch, which nothing precedes, is shown apart.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.bench_loader import AHEAD, write_jpegs
from benchmarks.records import Record, Row, save
from fastmpl.config import Config
from fastmpl.config.load import build as configured
from fastmpl.data.batch import Batch
from fastmpl.data.build import build as data
from fastmpl.run import monitor, trainer, training
from fastmpl.run.build import Trainee
from fastmpl.step.step_metrics import zero_metrics
from fastmpl.telemetry.metrics_file import read_lines
from fastmpl.telemetry.step_timer import StepTimer

Item = TypeVar("Item")
CLASSES, MAGNITUDE = 10, 17


class Asked(argparse.Namespace):
    """The options."""

    files: int
    labelled: int
    unlabelled: int
    threads: int
    steps: int
    dry: bool


def make_config(files: list[Path], operations: int, how: Asked, runs: Path) -> Config:
    """A run on lists of `files` beside them: all of them unlabelled, and all of them labelled too."""
    root = files[0].parent
    (root / "labelled.txt").write_text("".join(f"{file.name}\t{k % CLASSES}\n" for k, file in enumerate(files)))
    (root / "unlabelled.txt").write_text("".join(f"{file.name}\n" for file in files))
    keys = {
        "run.name": "waits", "run.output": str(runs), "run.steps": how.steps, "run.log_every": how.steps,
        "run.evaluate_every": how.steps, "run.checkpoint_every": how.steps,
        "data.source": "file_list", "data.root": str(root), "data.labels": 0, "data.validation": 0,
        "data.image_size": 224, "data.batch_labelled": how.labelled, "data.batch_unlabelled": how.unlabelled,
        "data.rand_augment": (operations, MAGNITUDE), "data.cutout": 0.5,
        "student.model": "conv", "student.width": 8, "teacher.model": "conv", "teacher.width": 8,
        "system.threads": how.threads,
    }  # fmt: skip
    return configured(keys, dict.fromkeys(keys, "benchmark"))


def time_loader(config: Config, batches: int) -> float:
    """Seconds of a batch where nothing else is done, in the steady state."""
    torch.set_num_threads(config.system.threads)
    with closing(data(config.data, seed=0, threads=config.system.threads).train) as loader:
        for _ in range(AHEAD):
            next(loader)
        begin = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return (time.perf_counter() - begin) / batches


class NotingTimer(StepTimer):
    """The trainer's timer, which also keeps the seconds that each batch was waited for."""

    waits: list[float]

    def wait_for(self, produce: Callable[[], Item]) -> Item:
        begin = time.perf_counter()
        found = super().wait_for(produce)
        self.waits.append(time.perf_counter() - begin)
        return found


def measure_waits(config: Config, step_seconds: float) -> list[float]:
    """Seconds that each step of the run waited for its batch."""

    def sleep_in_step(trainee: Trainee, *_: object, **__: object) -> Callable[[Batch], None]:
        def step(batch: Batch) -> None:
            time.sleep(step_seconds)
            assert trainee.step.watch is not None
            trainee.step.watch(zero_metrics(batch.labelled))

        return step

    NotingTimer.waits = []
    with patch.object(training, "choose_execution", sleep_in_step), patch.object(monitor, "StepTimer", NotingTimer):
        trainer.train(config, resume="never", quiet=True, report=False)
    return NotingTimer.waits


def make_row(files: list[Path], operations: int, how: Asked, runs: Path) -> Row:
    """Measures one augmentation and returns its row of the record."""
    config = make_config(files, operations, how, runs)
    batch = time_loader(config, batches=max(how.steps // 4, 1))
    first, *rest = np.array(measure_waits(config, 2 * batch)) / (2 * batch)
    told = read_lines(runs / "waits")[0]["waiting"]
    return {
        "RandAugment": f"{operations} operations, magnitude {MAGNITUDE}" if operations else "no",
        "a batch takes": f"{1e3 * batch:.0f} ms",
        "a step takes": f"{2e3 * batch:.0f} ms",
        "steps": how.steps - 1,
        "waits, mean": f"{np.mean(rest):.2%}",
        "median": f"{np.median(rest):.2%}",
        "worst": f"{np.max(rest):.2%}",
        "the first batch": f"{first:.0%}",
        "mean with it, as the run's log says": f"{told:.2%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--labelled", type=int, default=16)
    parser.add_argument("--unlabelled", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dry", action="store_true", help="write no record")
    how = parser.parse_args(namespace=Asked())
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as runs:
        files = write_jpegs(Path(folder), how.files)
        rows = [make_row(files, operations, how, Path(runs)) for operations in (0, 2)]
    for found in rows:
        print("  ".join(map(str, found.values())))
    if not how.dry:
        print(save(Record("loader_wait", "table", rows, {k: v for k, v in vars(how).items() if k != "dry"})))


if __name__ == "__main__":
    main()
