"""Trains a run: builds it, steps, logs, evaluates, saves, and continues what was interrupted. No mathematics here."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from fastmpl import checkpoint, finetune
from fastmpl.assemble import AnyLearner, Trainee, assemble, below
from fastmpl.check import require_same_data, require_trusted
from fastmpl.checkpoint import Checkpoint
from fastmpl.clock import Clock
from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.data.build import Data
from fastmpl.data.build import build as build_data
from fastmpl.data.stream import Replacement
from fastmpl.errors import DivergedError, StorageError
from fastmpl.evaluate import Judge, Network, Split, inferences
from fastmpl.execution import executed, loaded_dtype
from fastmpl.learners.zero.engine import logged
from fastmpl.lifecycle import State, Stopper, write_status
from fastmpl.lost import Lost, LostImages, NoneLost
from fastmpl.metrics import Evaluation, Log, Meter, lines_a_read
from fastmpl.networks import fixed_teacher, save_network
from fastmpl.processes import Group, Place, joined, place
from fastmpl.progress import Progress, Silent
from fastmpl.step.eager import EagerStep
from fastmpl.step.graphed import GraphedStep
from fastmpl.tenancy import taken
from fastmpl_kernels import dispatch

# torch's own forward-mode rules are scripted; no user can change that
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

SKIPPED_AT_MOST = 10  # updates that were not finite, in 100 steps


class Results(NamedTuple):
    """What a run ended with: accuracies are shares, by network and split. `results.json` holds the same."""

    steps: int
    last: dict[Network, dict[Split, float]]
    selected: dict[str, Any] | None  # the best on the validation images, and when
    finetuned: dict[Split, float] | None
    seconds: float


class Phase(NamedTuple):
    """A stretch of steps of one kind; steps are numbered through all phases."""

    name: Literal["train", "finetune"]
    last: int
    step: EagerStep | GraphedStep
    batches: Callable[[], Batch]
    networks: dict[Network, AnyLearner]  # what is evaluated, "average" being the student's


def train(config: Config, *, resume: str = "auto", quiet: bool = False, report: bool = True) -> Results:
    """Trains the run of `config`, or continues it; gives what its folder's results.json holds.

    resume: "auto" continues the newest valid checkpoint of the run's folder, "never" starts over (the old folder is
    kept under another name), and a path continues that checkpoint. `quiet` shows nothing; `report` says whether
    report.html is written at the end. Raises FastMPLError's family, one sentence each.
    """
    folder, here = Path(config.run.output) / config.run.name, place()
    with ExitStack() as held:
        if here.is_first:
            held.enter_context(taken(folder, config, resume))
            if config.system.engine == "zero":
                held.enter_context(logged(folder / "deepspeed.log"))
        run: Training | None = None
        try:
            with joined(here, folder, lambda: held.enter_context(Stopper()), config.system.timeout) as group:
                run = Training(config, folder, quiet, group, here)
                with closing(run):
                    run.restore(resume)
                    results = run.finish() if run.step == run.total else run.go()
            if report and here.is_first:
                from fastmpl.report import write_report  # matplotlib takes a second to import

                write_report(folder)
        except BaseException as error:
            if here.is_first:
                state: State = "interrupted" if run is not None and run.saved == run.step else "failed"
                write_status(folder, state, 0 if run is None else run.step, str(error))
            raise
        if here.is_first:
            write_status(folder, "done", run.step)
        return results


class Training:
    """One run between its start and its end."""

    def __init__(self, config: Config, folder: Path, quiet: bool, group: Group, here: Place) -> None:
        self.config, self.folder = config, folder
        self.ranks, self.stops = group
        self.quiet = quiet or not here.is_first
        dispatch.set_backend(config.system.kernels)
        if config.system.threads:
            torch.set_num_threads(config.system.threads)
        self.device = torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self.data: Data = build_data(
            config.data,
            seed=config.run.seed,
            rank=self.ranks.rank,
            world=self.ranks.size,
            channels_last=config.system.channels_last,
            threads=torch.get_num_threads(),
            device=self.device.index or 0 if self.device.type == "cuda" else None,
            dtype=loaded_dtype(config, self.device),
        )
        require_trusted(config, self.data.trusted_count)
        require_same_data(self.data.train.state()["fingerprint"], self.ranks)
        self.lost: Lost = LostImages(folder, self.ranks, self.data.names) if self.data.may_lack_images else NoneLost()
        self.judge = Judge(self.data, self.device, self.ranks)
        kind = {"classes": len(self.data.classes), "image_shape": self.data.image_shape}
        self.trainee: Trainee = assemble(
            config,
            device=self.device,
            ranks=self.ranks,
            fixed_teacher=lambda: fixed_teacher(config.teacher.model, **kind),  # type: ignore[arg-type]
            **kind,  # type: ignore[arg-type]
        )
        self.total = config.run.steps + config.finetune.steps
        self.meter = Meter(self.device, self.ranks, lines_a_read(self.device, config.run.log_every))
        self.trainee.step.watch = self.meter.add
        self.step, self.saved, self.seconds = 0, -1, 0.0
        self.best: dict[str, Any] | None = None
        self.finetuned: tuple[AnyLearner, EagerStep] | None = None

    def restore(self, resume: str) -> None:
        """Continues at a checkpoint, if there is one."""
        complaints = self.data.remarks()
        if resume in ("auto", "never"):
            found = checkpoint.newest(self.folder / "checkpoints", complaints.append, self.ranks)
        else:
            found = checkpoint.read(Path(resume), self.ranks)
        self.notes = complaints
        if found is None:
            return
        self.data.train.restore(found.facts["data"])
        self.step = self.saved = found.step
        self.best, self.seconds = found.facts["best"], found.facts["seconds"]
        self.trainee.load(found.tensors)
        self.meter.kept.copy_(found.tensors["meter"])
        if self.step > self.config.run.steps:
            learner, step = self._finetuned()
            learner.load(below(found.tensors, "finetuned"))
            step.load(below(found.tensors, "finetune_step"))
        if self.step:
            self.notes.append(f"Continuing at step {self.step} of {self.total}.")
        if found.ranks != self.ranks.size:
            self.notes.append(
                f"{found.ranks} ranks wrote what {self.ranks.size} continue: the same images, and the means over ranks "
                "where each had its own (statistics of batch norm); equal up to rounding, but for dropout."
            )

    def go(self) -> Results:
        """Trains from the present step to the last, through both phases."""
        config = self.config
        show = Silent if self.quiet else Progress
        with (
            show(config.run.name, self.total, self.step) as self.progress,
            Log(self.folder, warn=self.progress.note) if self.ranks.rank == 0 else nullcontext() as self.log,
        ):
            if self.log is not None:
                self.log.truncate_after(self.step)
                self.lost.truncate_after(self.step)
            for note in self.notes:
                self.progress.note(note)
            self.stops.begin(self.step + 1)
            for phase in self._phases():
                self._train(phase)
        return self.finish()

    def finish(self) -> Results:
        """The finished run's weights and results."""
        last = self.judge.accuracies(self._trained())
        student, finetuned = self.trainee.student, None
        if self.config.finetune.steps:
            student = self._finetuned()[0]
            finetuned = self.judge.accuracies({"student": student})["student"]
        results = Results(self.step, last, self.best, finetuned, self.seconds)
        with ExitStack() as held:
            held.enter_context(student.agreed())
            if student.average is not None:
                held.enter_context(student.averaged())
            weights = {}
            for name, value in student.weights():
                if self.ranks.rank == 0:
                    weights[name] = value.cpu()
            if self.ranks.rank == 0:
                (self.folder / "results.json").write_text(json.dumps(results._asdict(), indent=1) + "\n")
                save_network(
                    self.folder,
                    weights,
                    classes=self.data.classes,
                    image_shape=self.data.image_shape,
                    normalisation=self.data.normalisation,
                )
        return results

    def close(self) -> None:
        """Takes down what the networks are held by."""
        learners = [*self.trainee.learners().values()]
        for learner in [*learners, self.finetuned[0]] if self.finetuned is not None else learners:
            learner.close()

    def _phases(self) -> Iterator[Phase]:
        """The phases that are not over yet."""
        steps = self.config.run.steps
        if self.step < steps:
            decodes = self.data.may_lack_images
            trained = executed(self.trainee, self.config, self.device, self.progress.note, decodes=decodes)
            batches = self._next_batch
            if isinstance(trained, GraphedStep):
                batches = partial(trained.loaded, batches)
            yield Phase("train", steps, trained, batches, self._trained())
        if self.step < self.total:
            self.data.train.close()  # the memory of its pipelines is for what follows
            learner, step = self._finetuned()
            settings = self.config.finetune
            stream = self.data.finetune(settings.images, settings.batch, self.step - steps)
            following = finetune.batches(stream, self.device, self._note_replaced)
            yield Phase("finetune", self.total, step, following, {"student": learner})

    def _train(self, phase: Phase) -> None:
        """Steps to the end of a phase, with what is due between steps."""
        run, clock = self.config.run, Clock(self.step)
        while self.step < phase.last:
            batch = clock.awaited(phase.batches)
            phase.step(batch)
            self.step += 1
            self.progress.update(self.step, {})
            ends = self.step == phase.last
            evaluates = self.step % run.evaluate_every == 0 or ends
            # after the last step of all nothing is left to stop
            stops = self.step < self.total and self.stops.stops_after(self.step)
            saves = self.step % run.checkpoint_every == 0 or ends or stops
            if self.step % run.log_every == 0 or ends:
                self.meter.finish(self.step)
            if self.meter.is_full or evaluates or saves:  # those wait for the device anyway
                self._report(clock, images=(len(batch.labelled) + len(batch.weak)) * self.ranks.size)
            if evaluates:
                self._evaluate(phase)
            if saves:
                self._save(last=self.step == self.total)
            if stops:
                raise self.stops.reason(self.folder, self.step)

    def _report(self, clock: "Clock", images: int) -> None:
        """Writes the lines that are finished. `images`: of one step, over all ranks."""
        self.lost.gather(self.progress.note)
        lines = self.meter.read()
        pace = clock.pace(self.step)
        for line in lines:
            steps = line.step - clock.step
            self.seconds += pace.step * steps
            clock.passed(line.step, pace)
            speed = {"images_per_second": images / pace.step, "waiting": pace.waits}
            if self.log is not None:
                self.log.train(line.step, line.values, seconds=self.seconds, **speed)
            self.progress.update(self.step, line.values | speed)
            skipped = line.values["skipped"]
            if skipped > max(SKIPPED_AT_MOST, SKIPPED_AT_MOST * steps / 100):
                raise DivergedError(
                    f"{skipped:.0f} updates of the last {steps} steps were not finite, at step {line.step}. "
                    "Lower student.lr or teacher.lr, set clip = 1.0, or lower feedback.weight."
                )

    def _evaluate(self, phase: Phase) -> None:
        """Scores every network; remembers the best student on the validation images."""
        for network, infer in inferences(phase.networks):
            found = self.judge.scores(infer)
            for split, result in found.items():
                evaluation = Evaluation(self.step, phase.name, network, split, *result)
                if self.log is not None:
                    self.log.evaluation(evaluation)
                self.progress.evaluation(evaluation)
            if network == "teacher" or "validation" not in found:
                continue
            accuracies = {split: result.accuracy for split, result in found.items()}
            if self.best is None or accuracies["validation"] > self.best["validation"]:
                self.best = {"step": self.step, "network": network} | dict(accuracies.items())

    def _save(self, *, last: bool) -> None:
        """A checkpoint. Where the disk is full, training goes on, unless it was the last."""
        self.lost.gather(self.progress.note)
        folder = self.folder / "checkpoints"
        tensors, own = self.trainee.state() | {"meter": self.meter.kept}, self.trainee.own() | {"meter"}
        sharded = self.trainee.sharded()
        if self.finetuned is not None:
            learner, step = self.finetuned
            tensors |= {f"finetuned/{name}": value for name, value in learner.state().items()}
            own |= {f"finetuned/{name}" for name in learner.own()}
            sharded |= {f"finetuned/{name}" for name in learner.sharded()}
            tensors |= {f"finetune_step/{name}": value for name, value in step.state().items()}
        facts = {"data": self.data.train.state(), "best": self.best, "seconds": self.seconds}
        try:
            checkpoint.save(folder, Checkpoint(self.step, tensors, facts, own, sharded), self.ranks)
        except StorageError as error:
            if last:
                raise
            self.progress.note(f"{error} Training goes on without this checkpoint.")
            return
        self.saved = self.step
        self.progress.saved()
        if self.ranks.rank == 0:
            checkpoint.prune(folder, self.config.run.keep, None if self.best is None else self.best["step"])
            write_status(self.folder, "running", self.step)

    def _next_batch(self) -> Batch:
        batch = next(self.data.train)
        self._note_replaced(self.data.train.replaced)
        if self.device.type == "cpu":
            return batch
        return batch.to(self.device)

    def _note_replaced(self, replaced: Sequence[Replacement]) -> None:
        self.lost.add(self.step + 1, replaced)

    def _trained(self) -> dict[Network, AnyLearner]:
        networks: dict[Network, AnyLearner] = {"student": self.trainee.student}
        if self.trainee.teacher is not None and not self.config.data.store:  # which knows no other images
            networks["teacher"] = self.trainee.teacher
        return networks

    def _finetuned(self) -> tuple[AnyLearner, EagerStep]:
        if self.finetuned is None:
            learner = finetune.finetuned_learner(self.trainee.student, self.config)
            self.finetuned = learner, finetune.finetune_step(learner, self.config, self.device)
            self.finetuned[1].watch = self.meter.add
        return self.finetuned
