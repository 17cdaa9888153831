"""What a run trains: its student and perhaps its teacher, and from the last phase on the fine-tuned student beside them."""

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
from fastmpl.step.step_keys import StepMetrics


class Learned:
    """The networks of a run through all its phases, and every tensor that they continue from."""

    def __init__(
        self, trainee: Trainee, config: Config, device: torch.device, watch: Callable[[StepMetrics], None]
    ) -> None:
        """watch: told of every step of every phase."""
        self.trainee, self._config, self._device, self._watch = trainee, config, device, watch
        self._finetuned: tuple[RunLearner, EagerStep] | None = None
        trainee.step.watch = watch

    def finetuned(self) -> tuple[RunLearner, EagerStep]:
        """The student of the last phase and its step; it starts, when first asked for, as the student is then."""
        if self._finetuned is None:
            learner = finetune.finetuned_learner(self.trainee.student, self._config)
            self._finetuned = learner, finetune.finetune_step(learner, self._config, self._device)
            self._finetuned[1].watch = self._watch
        return self._finetuned

    def final(self) -> RunLearner:
        """The student that the run is for."""
        return self.finetuned()[0] if self._config.finetune.steps else self.trainee.student

    def evaluated(self) -> dict[Network, RunLearner]:
        """The networks that can judge any image: a teacher of stored rows knows no other images."""
        networks: dict[Network, RunLearner] = {"student": self.trainee.student}
        if self.trainee.teacher is not None and not self._config.data.store:
            networks["teacher"] = self.trainee.teacher
        return networks

    def parts(self) -> Parts:
        """What training continues from: the fine-tuned student's part is there once it has been asked for."""
        parts = dict(self.trainee.parts().parts)
        if self._finetuned is not None:
            parts |= dict(zip(("finetuned", "finetune_step"), self._finetuned, strict=True))
        return Parts(parts)

    def load(self, tensors: Mapping[str, Tensor], *, finetuning: bool) -> None:
        """Continues from a state; `finetuning` says whether it is one of the last phase."""
        if finetuning:
            self.finetuned()
        self.parts().load(tensors)

    def close(self) -> None:
        """Takes down what the networks are held by."""
        for learner in self.trainee.learners().values():
            learner.close()
        if self._finetuned is not None:
            self._finetuned[0].close()
