"""The networks that a run trains: its student, its teacher if that learns, and the fine-tuned student of the last phase."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastmpl.config import Config
from fastmpl.learners.protocol import RunLearner
from fastmpl.learners.state import Parts
from fastmpl.run import finetune
from fastmpl.run.build import Trainee
from fastmpl.run.scores import Network
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_metrics import StepMetrics


class TrainedNetworks:
    """The networks of a run through all its phases, with the tensors that a checkpoint keeps of them."""

    def __init__(
        self, trainee: Trainee, config: Config, device: torch.device, watch: Callable[[StepMetrics], None]
    ) -> None:
        """watch: called with the metrics of every step of every phase."""
        self.trainee, self._config, self._device, self._watch = trainee, config, device, watch
        self._finetuned: tuple[RunLearner, EagerStep] | None = None
        trainee.step.watch = watch

    def open_finetuning(self) -> tuple[RunLearner, EagerStep]:
        """The student of the last phase and its step. The first call copies the present student."""
        if self._finetuned is None:
            learner = finetune.make_finetuned_learner(self.trainee.student, self._config)
            self._finetuned = learner, finetune.make_finetune_step(learner, self._config, self._device)
            self._finetuned[1].watch = self._watch
        return self._finetuned

    def final_student(self) -> RunLearner:
        """The student whose weights the run leaves."""
        return self.open_finetuning()[0] if self._config.finetune.steps else self.trainee.student

    def to_evaluate(self) -> dict[Network, RunLearner]:
        """The networks that can be evaluated; a teacher of stored distributions knows only the stored images."""
        networks: dict[Network, RunLearner] = {"student": self.trainee.student}
        if self.trainee.teacher is not None and not self._config.data.store:
            networks["teacher"] = self.trainee.teacher
        return networks

    def to_analyse(self) -> dict[Network, RunLearner]:
        """The networks that learn in the main phase; a reduced teacher sees stored distributions."""
        networks: dict[Network, RunLearner] = {"student": self.trainee.student}
        return networks if self.trainee.teacher is None else networks | {"teacher": self.trainee.teacher}

    def parts(self) -> Parts:
        """What training continues from; with the fine-tuned student once fine-tuning is open."""
        parts = dict(self.trainee.parts().parts)
        if self._finetuned is not None:
            parts |= dict(zip(("finetuned", "finetune_step"), self._finetuned, strict=True))
        return Parts(parts)

    def load(self, tensors: Mapping[str, Tensor], *, finetuning: bool) -> None:
        """Continues from a state. finetuning: whether it is one of the last phase."""
        if finetuning:
            self.open_finetuning()
        self.parts().load(tensors)

    def close(self) -> None:
        """Frees what the networks hold outside of Python's memory."""
        for learner in self.trainee.learners().values():
            learner.close()
        if self._finetuned is not None:
            self._finetuned[0].close()
