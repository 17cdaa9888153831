"""What a run tells of itself while it trains: lines of means, accuracies, notes, and which student was the best so far."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.data.build import Data
from fastmpl.distributed.ranks import Ranks
from fastmpl.errors import DivergedError
from fastmpl.run.build import AnyLearner
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.scores import Judge, Network, Split, inferences
from fastmpl.telemetry.metrics import Evaluation, Log, Meter, lines_a_read
from fastmpl.telemetry.progress import Progress, Silent
from fastmpl.telemetry.replaced_images import Lost, LostImages, NoneLost
from fastmpl.telemetry.step_timer import Clock

SKIPPED_AT_MOST = 10  # updates that were not finite, in 100 steps


class Observer:
    """Measures a run and passes on what it finds: to metrics.jsonl and loggers on rank 0, and to whoever watches."""

    def __init__(
        self, config: Config, data: Data, folder: Path, device: torch.device, ranks: Ranks, *, quiet: bool
    ) -> None:
        self._config, self._folder, self._ranks, self._quiet = config, folder, ranks, quiet
        self.lost: Lost = LostImages(folder, ranks, data.names) if data.may_lack_images else NoneLost()
        self.meter = Meter(device, ranks, lines_a_read(device, config.run.log_every))
        self._judge = Judge(data, device, ranks)
        self.seconds = 0.0  # of training so far
        self.best: dict[str, Any] | None = None  # of the students evaluated, on the validation images

    @contextmanager
    def watching(self, step: int, total: int) -> Generator[Progress | Silent]:
        """Open files and a progress display from `step` on; lines of later steps are of a run that was cut off."""
        show = Silent if self._quiet else Progress
        with (
            show(self._config.run.name, total, step) as self.progress,
            Log(self._folder, warn=self.progress.note) if self._ranks.rank == 0 else nullcontext() as self._log,
        ):
            if self._log is not None:
                self._log.truncate_after(step)
                self.lost.truncate_after(step)
            yield self.progress

    def begin(self, step: int) -> None:
        """A phase goes on from `step`: its time counts from now."""
        self._clock = Clock(step)

    def awaited(self, following: Callable[[], Batch]) -> Batch:
        """The next batch; the time until it is there is told as time waited."""
        return self._clock.awaited(following)

    def report(self, step: int, images: int) -> None:
        """Writes the lines that are finished at `step`. `images`: of one step, over all ranks."""
        self.lost.gather(self.progress.note)
        lines = self.meter.read()
        pace = self._clock.pace(step)
        for line in lines:
            steps = line.step - self._clock.step
            self.seconds += pace.step * steps
            self._clock.passed(line.step, pace)
            speed = {"images_per_second": images / pace.step, "waiting": pace.waits}
            if self._log is not None:
                self._log.train(line.step, line.values, seconds=self.seconds, **speed)
            self.progress.update(line.step, line.values | speed)
            skipped = line.values["skipped"]
            if skipped > max(SKIPPED_AT_MOST, SKIPPED_AT_MOST * steps / 100):
                raise DivergedError(
                    f"{skipped:.0f} updates of the last {steps} steps were not finite, at step {line.step}. "
                    "Lower student.lr or teacher.lr, set clip = 1.0, or lower feedback.weight."
                )

    def evaluate(self, step: int, phase: Literal["train", "finetune"], networks: Mapping[Network, AnyLearner]) -> None:
        """Scores every network; remembers the best student on the validation images."""
        for network, infer in inferences(networks):
            found = self._judge.scores(infer)
            for split, result in found.items():
                evaluation = Evaluation(step, phase, network, split, *result)
                if self._log is not None:
                    self._log.evaluation(evaluation)
                self.progress.evaluation(evaluation)
            if network == "teacher" or "validation" not in found:
                continue
            accuracies = {split: result.accuracy for split, result in found.items()}
            if self.best is None or accuracies["validation"] > self.best["validation"]:
                self.best = {"step": step, "network": network} | dict(accuracies.items())

    def accuracies(self, networks: Mapping[Network, AnyLearner]) -> dict[Network, dict[Split, float]]:
        """Shares of right answers by network and split, told to nobody."""
        return self._judge.accuracies(networks)

    def state(self) -> dict[str, Tensor]:
        """The line that is not finished, each rank's own."""
        return {"meter": self.meter.kept}

    def facts(self) -> dict[str, Any]:
        """What else a checkpoint keeps of what was observed."""
        return {"best": self.best, "seconds": self.seconds}

    def restore(self, found: Checkpoint) -> None:
        """Continues where a checkpoint was made."""
        self.meter.kept.copy_(found.tensors["meter"])
        self.best, self.seconds = found.facts["best"], found.facts["seconds"]
