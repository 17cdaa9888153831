"""A run between its start and its end: it is built, takes its steps, logs, evaluates, saves and resumes; no mathematics."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastmpl.config import Config, estimates_corruption, learns_unlabelled, takes_trusted
from fastmpl.config.meaning import trained_optimisers
from fastmpl.data.batch import Batch
from fastmpl.data.build import Data
from fastmpl.data.build import build as build_data
from fastmpl.data.evaluation import Framing, framing_of
from fastmpl.data.view_stream import Replacement
from fastmpl.distributed.process_group import Group, Place
from fastmpl.errors import StorageError
from fastmpl.learners.arithmetic import describe_precision
from fastmpl.learners.protocol import RunLearner
from fastmpl.run import checkpoint, finetune
from fastmpl.run.build import assemble
from fastmpl.run.callbacks import Callback
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.corruption import estimate_by_run
from fastmpl.run.divergence import describe_divergence
from fastmpl.run.expected_inputs import describe_inputs
from fastmpl.run.fixed_teacher import Target, load_fixed_teacher
from fastmpl.run.folder import add_note, require_own
from fastmpl.run.graph_choice import choose_execution, loaded_dtype
from fastmpl.run.headline import MEASURES
from fastmpl.run.input_constants import normalisation_of
from fastmpl.run.monitor import Monitor
from fastmpl.run.network_preconditions import require_label_of_each_class, require_networks
from fastmpl.run.preconditions import (
    remark_on_finetuning,
    require_full_batches,
    require_kernels,
    require_same_data,
    require_trusted,
)
from fastmpl.run.pretrained import Start, read_start
from fastmpl.run.resuming import require_fitting, set_newer_aside
from fastmpl.run.saver import Saver
from fastmpl.run.saving import Saving
from fastmpl.run.scores import Network
from fastmpl.run.student_file import student_facts
from fastmpl.run.trained_networks import TrainedNetworks
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_graph import GraphedStep
from fastmpl.step.taped_step import TapedStep
from fastmpl.telemetry.skip_window import AT_MOST
from fastmpl_kernels import dispatch

# torch itself scripts its forward-mode rules; a user cannot change that
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)


class Phase(NamedTuple):
    """Consecutive steps of one kind. Steps are numbered through all phases."""

    name: Literal["train", "finetune"]
    last: int
    step: EagerStep | GraphedStep | TapedStep
    batches: Callable[[], Batch]
    networks: dict[Network, RunLearner]  # those that are evaluated


class Training:
    """One run between its start and its end."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        quiet: bool,
        group: Group,
        here: Place,
        *,
        starts: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """starts: False for a run that continues: it reads no pretrained weights and no other run again."""
        self.config, self.folder, self.starts = config, folder, starts
        self.ranks, self.stops = group.ranks, group.stops
        require_kernels()
        dispatch.set_backend(config.system.kernels)
        if config.system.threads:
            torch.set_num_threads(config.system.threads)
        self.device = torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self.data = self._build_data()
        self.notes = self.data.remarks()  # shown when training begins
        self.notes += describe_precision(self.device, config.system.precision)
        require_trusted(config, self.data.trusted_count)
        require_label_of_each_class(config, self.data.classes, self.data.truth[self.data.split.labelled].numpy())
        require_full_batches(config, self.data.split)
        self.notes += remark_on_finetuning(config, self.data.split)
        require_same_data(self.data.train.state()["fingerprint"], self.ranks)
        silent = quiet or not here.is_first
        self.monitor = Monitor(config, self.data, folder, self.device, self.ranks, quiet=silent, callbacks=callbacks)
        require_networks(config, classes=len(self.data.classes), image_shape=self.data.image_shape, every=False)
        pretrained = self._read_pretrained() if starts else {}
        self.weights = {role: start.sha256 for role, start in pretrained.items()}
        trainee = assemble(
            config,
            classes=len(self.data.classes),
            image_shape=self.data.image_shape,
            device=self.device,
            ranks=self.ranks,
            fixed_teacher=self._load_fixed_teacher,
            corruption=self._estimate_corruption if starts and estimates_corruption(config) else None,
            weights={role: start.weights for role, start in pretrained.items()},
            normalisation=self.data.normalisation,
            note=self.notes.append,
        )
        self.networks = TrainedNetworks(trainee, config, self.device, self.monitor.add)
        self.total = config.run.steps + config.finetune.steps
        self.step = 0
        saver = Saver(
            folder / "checkpoints",
            group.saving,
            here.local_size,
            config.run.keep,
            self.monitor.note,
            partial(require_own, folder),
        )
        self.saving = Saving(saver, self.monitor, folder, self.ranks)

    def _build_data(self) -> Data:
        config = self.config
        return build_data(
            config.data,
            seed=config.run.seed,
            rank=self.ranks.rank,
            world=self.ranks.size,
            channels_last=config.system.channels_last,
            threads=torch.get_num_threads(),
            device=self.device.index or 0 if self.device.type == "cuda" else None,
            dtype=loaded_dtype(config, self.device),
            normalisation=normalisation_of(config.student, config.data.channels),
            unlabelled=learns_unlabelled(config),
            trusted=takes_trusted(config),
        )

    def _read_pretrained(self) -> dict[str, Start]:
        sections = {role: getattr(self.config, role).pretrained for role in trained_optimisers(self.config)}
        found = {role: read_start(path, role, self.data.classes) for role, path in sections.items() if path}
        for start in found.values():
            self.notes += start.remarks
        self.notes += describe_inputs(self.config)
        return found

    def _load_fixed_teacher(self) -> nn.Module:
        data = self.data
        target = Target(data.classes, data.image_shape, data.normalisation)
        module, remarks = load_fixed_teacher(self.config.teacher.model, target)
        self.notes += remarks
        return module

    def _estimate_corruption(self) -> Tensor:
        """How labels are confused: rank 0's estimate for all, since other processors round otherwise."""
        found = estimate_by_run(self.config.teacher.model, self.data, self.device)
        self.notes += found.remarks
        return self.ranks.all_gather_object(found.matrix)[0]

    def restore(self, resume: str) -> None:
        """Continues from a checkpoint, if there is one: the newest that is valid and fits, or the one that is named."""
        is_named = resume not in ("auto", "never")
        if is_named:
            found: Checkpoint | None = checkpoint.read(Path(resume), self.ranks)
            assert found is not None
            self._require_fitting(found, resume)
        else:
            found = checkpoint.read_newest(
                self.folder / "checkpoints",
                self.notes.append,
                self.ranks,
                lambda found: self._require_fitting(found, f"The checkpoint of step {found.step}"),
            )
        if found is None:
            wanted = any(getattr(self.config, role).pretrained for role in trained_optimisers(self.config))
            if (wanted or estimates_corruption(self.config)) and not self.starts:
                raise StorageError(
                    f"{self.folder} has no checkpoint that can be read: {' '.join(self.notes)} "
                    "Use --resume never to start over."
                )
            return
        self.continue_from(found)
        if is_named and self.ranks.rank == 0 and (aside := set_newer_aside(self.folder, self.step)):
            self.notes.append(aside)

    def _require_fitting(self, found: Checkpoint, name: str) -> None:
        """Raises a FastMPLError if a checkpoint is of another run or data, or no state that a run can have."""
        parts = self.networks.parts()
        here, sharded = parts.state() | self.monitor.state(), parts.placement().sharded
        require_fitting(found, name, here, sharded, self.config)
        self.data.train.restore(found.facts["data"])

    def continue_from(self, found: Checkpoint) -> None:
        """Takes over the state of a checkpoint that fits."""
        self.weights = found.facts.get("pretrained", {})
        self.data.train.restore(found.facts["data"])
        self.step = self.saving.newest = found.step
        self.networks.load(found.tensors, finetuning=self.step > self.config.run.steps)
        if missing := self.monitor.restore(found):
            self.notes.append(missing)
        if self.step:
            self.notes.append(f"Continuing at step {self.step} of {self.total}.")
        if found.ranks != self.ranks.size:
            self.notes.append(
                f"{found.ranks} ranks wrote the checkpoint and {self.ranks.size} continue it: the images are the same, "
                "running statistics of batch norm are averaged, and results are equal up to rounding and dropout."
            )

    def go(self) -> None:
        """Trains to the last step, through all phases that are left."""
        with self.monitor.watch(self.step, self.total), ExitStack() as held:
            held.callback(dispatch.on_fallback(self._note_fallback))
            held.callback(self.saving.close)
            for note in self.notes:
                self.monitor.note(note)
            self.stops.begin(self.step + 1)
            for phase in self._phases():
                try:
                    self._train(phase)
                finally:
                    if isinstance(phase.step, GraphedStep):
                        phase.step.close()

    @property
    def is_finished(self) -> bool:
        """Whether no step is left, or run.patience ended the run before its last one."""
        return self.step == self.total or self.monitor.is_exhausted

    @property
    def framing(self) -> Framing | None:
        """How the student is shown pictures; None for points."""
        return None if self.data.normalisation is None else framing_of(self.config.data)

    def _phases(self) -> Iterator[Phase]:
        """The phases that are not finished."""
        steps = self.config.run.steps
        if self.step < steps:
            decodes = self.data.may_lack_images
            trained = choose_execution(self.networks.trainee, self.config, self.device, self._note, decodes=decodes)
            batches = self._next_batch
            if isinstance(trained, GraphedStep):
                batches = partial(trained.load_next, batches)
            yield Phase("train", steps, trained, batches, self.networks.to_evaluate())
        if steps <= self.step < self.total:
            self.data.train.close()  # frees the memory of its pipelines
            learner, step = self.networks.open_finetuning()
            settings = self.config.finetune
            stream = self.data.finetune(settings.images, settings.batch, self.step - steps)
            batches = finetune.make_batches(stream, self.device, self._note_replaced)
            yield Phase("finetune", self.total, step, batches, {"student": learner})

    def _note(self, sentence: str) -> None:
        """Says how the run is executed otherwise than asked: on the screen, in STATUS.json, and so in the report."""
        self.monitor.note(sentence)
        if self.ranks.rank == 0:
            add_note(self.folder, sentence)

    def _note_fallback(self, op: str, reason: str) -> None:
        self._note(f"The Triton kernel of {op} cannot run here ({reason}): its reference serves, slower.")

    def _train(self, phase: Phase) -> None:
        """Takes the steps of a phase; logs, evaluates and saves between them."""
        run, meter = self.config.run, self.monitor.meter
        self.monitor.start_phase(self.step)
        if not self.step:
            self._analyse(evaluates=True)
        while self.step < phase.last:
            batch = self.take_step(phase)
            images = (len(batch.labelled) + len(batch.weak)) * self.ranks.size
            self.monitor.show_step(self.step, images)
            self.saving.tell()
            ends = self.step == phase.last
            evaluates = self.step % run.evaluate_every == 0 or ends
            # after the very last step there is nothing to stop
            stops = self.step < self.total and self.stops.stops_after(self.step)
            saves = self.step % run.checkpoint_every == 0 or ends or stops
            if self.step % run.log_every == 0 or ends:
                meter.finish(self.step)
            if meter.is_full or evaluates or saves:  # evaluating and saving wait for the device anyway
                self.monitor.write_lines(self.step, images)
                if (skipped := self.monitor.skips.read_worst()) > AT_MOST:
                    raise describe_divergence(skipped, self, phase)
            if phase.name == "train":
                self._analyse(evaluates=evaluates)
            if evaluates:
                self.monitor.evaluate(self.step, phase.name, phase.networks)
                if self.monitor.is_exhausted:
                    self._stop_early(images)
                    return
            if saves:
                self._save(last=stops or self.step == self.total)
            if stops:
                raise self.stops.reason(self.folder, self.step)

    def _analyse(self, *, evaluates: bool) -> None:
        networks = self.networks
        self.monitor.analyse(self.step, networks.to_analyse(), networks.trainee.teacher, evaluates=evaluates)

    def _stop_early(self, images: int) -> None:
        """Ends the run, because run.patience evaluations found no better student."""
        run = self.config.run
        if self.step % run.log_every:  # an unfinished line
            self.monitor.meter.finish(self.step)
            self.monitor.write_lines(self.step, images)
        self._save(last=True)
        self._note(
            f"Stopped early, at step {self.step} of {self.total}: {run.patience} evaluations found no student with a "
            f"better {MEASURES[run.select_by]} (run.patience)."
        )

    def take_step(self, phase: Phase) -> Batch:
        """Takes the next step of a phase, on the batch that it returns."""
        batch = self.monitor.wait_for(phase.batches)
        phase.step(batch)
        self.step += 1
        return batch

    def make_checkpoint(self) -> Checkpoint:
        """The present state, with the tensors that training goes on changing."""
        parts, monitor = self.networks.parts(), self.monitor
        return Checkpoint(
            self.step,
            parts.state() | monitor.state() | monitor.selection.state(),
            {"data": self.data.train.state(), **monitor.facts(), **self._facts()},
            parts.placement().per_rank | set(monitor.state()),
            parts.placement().sharded,
        )

    def _save(self, *, last: bool) -> None:
        self.saving.save(self.make_checkpoint(), last=last)

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the states of its parts."""
        student = student_facts(self.data.classes, self.data.image_shape, self.data.normalisation, self.framing)
        return {"student": student, "pretrained": self.weights}

    def _next_batch(self) -> Batch:
        batch = next(self.data.train)
        self._note_replaced(self.data.train.replaced)
        if self.device.type == "cpu":
            return batch
        return batch.to(self.device)

    def _note_replaced(self, replaced: Sequence[Replacement]) -> None:
        self.monitor.replaced.add(self.step + 1, replaced)
