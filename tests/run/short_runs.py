"""Short training runs on digits, for tests: their configuration, and training, stopping and reading them."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fastmpl.config import Config, load
from fastmpl.errors import FastMPLError
from fastmpl.run import trainer, training
from fastmpl.run.closing import Results
from fastmpl.telemetry.metrics_file import read_lines

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
TIMINGS = ("seconds", "images_per_second", "waiting")


def short_config(folder: Path, base: str = "digits", **changes: Any) -> Config:
    """The configuration of a run of 20 steps in `folder`/small; changes: `section__key=value`."""
    small = {
        "run.output": str(folder),
        "run.name": "small",
        "run.steps": 20,
        "run.log_every": 6,
        "run.evaluate_every": 10,
        "run.checkpoint_every": 100,
        "run.keep": 9,
        "data.batch_unlabelled": 32,
        "teacher.warmup": 4,
        "student.warmup": 4,
    }
    return load(CONFIGS / f"{base}.toml", small | {key.replace("__", "."): value for key, value in changes.items()})


def train_quietly(config: Config, **options: Any) -> Results:
    return trainer.train(config, quiet=True, **({"report": False} | options))


def stop_after(steps: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until SIGTERM arrives in that step."""
    taken = 0
    original = training.Training._next_batch

    def count(self: training.Training) -> Any:
        nonlocal taken
        taken += 1
        if taken == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_next_batch", count)
        with pytest.raises(FastMPLError) as stopped:
            train_quietly(config)
    assert stopped.value.exit_code == 75


def untimed_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the measured times."""
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_lines(folder)]
