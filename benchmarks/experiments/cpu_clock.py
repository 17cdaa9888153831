"""The CPU seconds of a run: those of its training steps, without its start and its evaluations.

A machine that others use has no wall time to speak of. CPU seconds count this process alone, with all of its threads.
"""

import json
import time
from pathlib import Path
from typing import NamedTuple

import torch

from fastmpl.config import Config, difference, load
from fastmpl.run import trainer
from fastmpl.run.callbacks import Callback, StepDone
from fastmpl.run.expected_inputs import settle_inputs
from fastmpl.telemetry.metrics_file import Evaluation

FILE = "cpu.json"  # in the run's folder; it is there once the run has ended


class Point(NamedTuple):
    """A student's accuracy after some training."""

    step: int
    seconds: float  # of CPU, of training so far
    test: float  # a share


class CountedRun(NamedTuple):
    """What a run's CPU seconds bought. `points` are those of its average where it keeps one, else of its student."""

    seconds: float
    steps: int
    points: list[Point]


class CpuClock:
    """Callbacks that count the CPU seconds of training from the first step's end on."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self.points: dict[str, list[Point]] = {}  # by network
        self._since: float | None = None

    def count_step(self, done: StepDone) -> None:
        now = time.process_time()
        if self._since is not None:
            self.seconds += now - self._since
            self.steps += 1
        self._since = now

    def note_accuracy(self, found: Evaluation) -> None:
        if found.split == "test":
            self.points.setdefault(found.network, []).append(Point(found.step, self.seconds, found.accuracy))
        self._since = time.process_time()


def train_counted(config: Config) -> CountedRun:
    """Trains a run with one thread and counts; a run that was counted with exactly these settings is read instead."""
    torch.set_num_threads(1)
    folder = Path(config.run.output) / config.run.name
    if (folder / FILE).is_file() and not difference(load(folder / "config.toml"), settle_inputs(config, folder)):
        seconds, steps, points = json.loads((folder / FILE).read_text())
        return CountedRun(seconds, steps, [Point(*each) for each in points])
    clock = CpuClock()
    callback = Callback(on_step=clock.count_step, on_evaluation=clock.note_accuracy)
    trainer.train(config, quiet=True, report=False, callbacks=[callback])
    found = CountedRun(clock.seconds, clock.steps, clock.points.get("average") or clock.points["student"])
    (folder / FILE).write_text(json.dumps(found))
    return found
