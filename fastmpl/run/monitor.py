"""What a run reports while it trains: lines of metrics, accuracies, notes, and the selection of the best student."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.data.build import Data
from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.protocol import RunLearner
from fastmpl.run.callbacks import Callback, Callbacks
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.checkpoint_schema import RECENT_SKIPS
from fastmpl.run.scores import Network, Scorer, Split, inferences
from fastmpl.run.selection import Selection
from fastmpl.run.training_analysis import TrainingAnalysis
from fastmpl.step.step_metrics import StepMetrics
from fastmpl.telemetry.loggers import Logger
from fastmpl.telemetry.metrics import Log, Meter, lines_a_read
from fastmpl.telemetry.metrics_file import Evaluation
from fastmpl.telemetry.progress import Progress, Silent
from fastmpl.telemetry.replaced_images import NoReplacedImages, ReplacedImages, ReplacedImagesFile
from fastmpl.telemetry.skip_window import SkipWindow
from fastmpl.telemetry.step_timer import StepTimer
from fastmpl.telemetry.trackers import open_trackers


class Monitor:
    """Measures a run and reports it: to metrics.jsonl and loggers on rank 0, and to the progress display."""

    def __init__(
        self,
        config: Config,
        data: Data,
        folder: Path,
        device: torch.device,
        ranks: Ranks,
        *,
        quiet: bool,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._config, self._folder, self._ranks, self._quiet = config, folder, ranks, quiet
        self._callbacks = Callbacks(callbacks if ranks.rank == 0 else ())
        self.replaced: ReplacedImages = (
            ReplacedImagesFile(folder, ranks, data.names) if data.may_lack_images else NoReplacedImages()
        )
        self.meter = Meter(device, ranks, lines_a_read(device, config.run.log_every))
        self.skips = SkipWindow(device)
        self.seconds = 0.0  # of training so far
        self.selection = Selection(config.run.select_by, ranks)
        self._scorer = Scorer(data, device, ranks)
        self._analysis = TrainingAnalysis(config, data, device, ranks) if config.run.analyse else None
        self._display: Progress = Silent(config.run.name, config.run.steps)
        self._log: Log | None = None
        self._timer = StepTimer(0)

    @contextmanager
    def watch(self, step: int, total: int) -> Generator[None]:
        """Keeps the log and the display open from `step` on; drops the lines of later steps, of a run that was killed."""
        show = Silent if self._quiet else Progress
        with (
            show(self._config.run.name, total, step) as self._display,
            Log(self._folder, self._open_trackers(), warn=self.note)
            if self._ranks.rank == 0
            else nullcontext() as self._log,
        ):
            if self._log is not None:
                self._log.truncate_after(step)
                self.replaced.truncate_after(step)
            yield

    def _open_trackers(self) -> list[Logger]:
        facts = {
            f"{name}.{key}": value
            for name, section in self._config.model_dump(mode="json").items()
            for key, value in section.items()
        }
        return open_trackers(self._config.run.trackers, self._folder, self._config.run.name, facts)

    def add(self, metrics: StepMetrics) -> None:
        """Adds the metrics of a step, inside the step; it never waits for the device."""
        self.meter.add(metrics)
        self.skips.add(metrics.skipped)

    def note(self, sentence: str) -> None:
        """Shows the user a sentence, on rank 0."""
        self._display.show_note(sentence)

    def show_step(self, step: int, images: int) -> None:
        """Shows that the run is at `step`, with values that are seconds old. `images`: of one step, on all ranks."""
        if self._display.wants_values:  # where steps are slow or lines long; the line itself is not touched
            pace = self._timer.pace(step)
            speed = {"images_per_second": images / pace.step, "waiting": pace.waiting_share}
            self._display.preview(self.meter.preview() | speed)
        self._display.update(step, {})
        self._callbacks.call_step(step, self._config.run.steps + self._config.finetune.steps)

    def show_saved(self, step: int) -> None:
        """Shows that the checkpoint of `step` was written now."""
        self._display.show_saved()
        self._callbacks.call_checkpoint(step, self._folder / "checkpoints" / f"step-{step}")

    def start_phase(self, step: int) -> None:
        """Measures time from now on; a phase begins after `step`."""
        self._timer = StepTimer(step)

    def wait_for(self, next_batch: Callable[[], Batch]) -> Batch:
        """The next batch; the time until it is there counts as time spent waiting."""
        return self._timer.wait_for(next_batch)

    def write_lines(self, step: int, images: int) -> None:
        """Writes the lines that are finished at `step`. `images`: of one step, over all ranks."""
        self.replaced.write(self.note)
        lines = self.meter.read()
        pace = self._timer.pace(step)
        for line in lines:
            steps = line.step - self._timer.step
            self.seconds += pace.step * steps
            self._timer.start_after(line.step, pace)
            speed = {"images_per_second": images / pace.step, "waiting": pace.waiting_share}
            if self._log is not None:
                self._log.train(line.step, line.values, seconds=self.seconds, **speed)
            self._display.update(line.step, line.values | speed)

    def evaluate(self, step: int, phase: Literal["train", "finetune"], networks: Mapping[Network, RunLearner]) -> None:
        """Scores every network, and keeps the best student by its score on the validation images."""
        improved = False
        for network, infer, weights in inferences(networks):
            found = self._scorer.scores(infer)
            for split, result in found.items():
                evaluation = Evaluation(step, phase, network, split, *result)
                if self._log is not None:
                    self._log.evaluation(evaluation)
                self._display.show_evaluation(evaluation)
                self._callbacks.call_evaluation(evaluation)
            if network != "teacher":
                improved |= self.selection.consider(step, network, found, weights)
        self.selection.end_evaluation(improved=improved)

    def analyse(
        self, step: int, networks: Mapping[Network, RunLearner], teacher: RunLearner | None, *, evaluates: bool
    ) -> None:
        """Measures what run.analyse asks for, at evaluations and at five moments of training; nothing without it.

        teacher: one that learns, None for a method that has none.
        """
        if self._analysis is None or not (evaluates or self._analysis.is_moment(step)):
            return
        targets = None if teacher is None else self._analysis.measure_targets(step, teacher)
        for found in (targets, *self._analysis.measure_accuracies(step, networks)):
            if found is not None and self._log is not None:
                self._log.analysis(found)

    def select(self, step: int, networks: Mapping[Network, RunLearner]) -> None:
        """Selects among these networks alone, without a line in the log."""
        for network, infer, weights in inferences(networks):
            if network != "teacher":
                self.selection.consider(step, network, self._scorer.scores(infer), weights)

    @property
    def is_exhausted(self) -> bool:
        """Whether run.patience evaluations in a row found no better student."""
        patience = self._config.run.patience
        return 0 < patience <= self.selection.stale

    @property
    def images(self) -> dict[Split, int]:
        """The number of images of each split that there is."""
        return self._scorer.counts

    def accuracies(self, networks: Mapping[Network, RunLearner]) -> dict[Network, dict[Split, float]]:
        """Shares of right answers by network and split; nothing is logged."""
        return self._scorer.accuracies(networks)

    def state(self) -> dict[str, Tensor]:
        """The unfinished line of metrics, which differs between ranks, and the skipped updates of the last steps."""
        return {"meter": self.meter.kept, RECENT_SKIPS: self.skips.recent}

    def facts(self) -> dict[str, Any]:
        """What else a checkpoint keeps of the monitor."""
        return {**self.selection.facts(), "seconds": self.seconds}

    def restore(self, found: Checkpoint) -> str | None:
        """Continues from a checkpoint. A sentence for the user where something of it is missing."""
        self.meter.kept.copy_(found.tensors["meter"])
        self.skips.load(found.tensors[RECENT_SKIPS])
        self.seconds = found.facts["seconds"]
        return self.selection.restore(found.facts, found.tensors)
