"""Whole runs on ranks of this machine: what a launcher does, done by a test."""

import io
import os
import signal
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmpl.config import Config
from fastmpl.data.errors import DataError
from fastmpl.distributed.ranks import Ranks
from fastmpl.errors import FastMPLError
from fastmpl.run import trainer, training
from tests.run.short_runs import short_config


@dataclass(frozen=True)
class Ended:
    """How a rank's run ended: 0 or the error's exit code, and what its user reads on this rank."""

    code: int
    told: str
    results: dict[str, Any] | None


@dataclass(frozen=True)
class Job:
    """A run of every rank, and what happens to one of them when it asks for its batch `at`."""

    config: Config
    event: str = ""  # stop, data, kill, vanish, lose
    rank: int = 0
    at: int = 7
    resume: str = "auto"
    file: str = ""  # that vanishes, or the run's folder, which is lost
    cache: str = ""  # of the user
    report: bool = False

    def __call__(self, ranks: Ranks) -> Ended:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.size), LOCAL_WORLD_SIZE=str(ranks.size))
        if self.cache:  # ranks have the environment of the first test that had some
            os.environ["XDG_CACHE_HOME"] = self.cache
        training.Training._next_batch = self.disturb(ranks)  # type: ignore[method-assign]
        shown = io.StringIO()
        try:
            with redirect_stdout(shown), redirect_stderr(shown):
                results = trainer.train(self.config, report=self.report, resume=self.resume)
        except FastMPLError as error:
            return Ended(error.exit_code, "" if error.told else str(error), None)
        return Ended(0, shown.getvalue(), results._asdict())

    def disturb(self, ranks: Ranks) -> Callable[[training.Training], Any]:
        original, asked = training.Training._next_batch, 0

        def next_batch(training: training.Training) -> Any:
            nonlocal asked
            asked += 1
            if ranks.rank == self.rank and asked == self.at:
                if self.event in ("kill", "freeze"):
                    training.saving.close()  # a save that has begun is whole, also on a machine that is busy
                if self.event == "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
                if self.event == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.event == "vanish":
                    os.unlink(self.file)
                if self.event == "lose":
                    os.rename(self.file, f"{self.file}-elsewhere")
                if self.event == "freeze":
                    os.kill(os.getpid(), signal.SIGSTOP)
                if self.event == "nan":  # of the student's loss, and by the feedback of the teacher's gradient
                    batch = original(training)
                    return batch._replace(strong=batch.strong * torch.nan)
                if self.event == "infinite":  # of the teacher's supervised gradient
                    batch = original(training)
                    return batch._replace(labelled=batch.labelled * torch.inf)
                if self.event == "data":
                    raise DataError("an image vanished.")
            return original(training)

        return next_batch


def conv(folder: Path, **changes: Any) -> Config:
    """A short run of networks with batch norm, whose statistics are each rank's own."""
    own = {"model": "conv", "width": 16}
    networks = {f"{role}__{key}": value for role in ("teacher", "student") for key, value in own.items()}
    return short_config(folder, **(networks | changes))
