"""What a run trains: its student and perhaps its teacher, and from the last phase on the fine-tuned student beside them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastmpl.config import Config
from fastmpl.run import finetune
from fastmpl.run.build import AnyLearner, Trainee, below
from fastmpl.run.scores import Network
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_keys import Report


class Learned:
    """The networks of a run through all its phases, and every tensor that they continue from."""

    def __init__(self, trainee: Trainee, config: Config, device: torch.device, watch: Callable[[Report], None]) -> None:
        """watch: told of every step of every phase."""
        self.trainee, self._config, self._device, self._watch = trainee, config, device, watch
        self._finetuned: tuple[AnyLearner, EagerStep] | None = None
        trainee.step.watch = watch

    def finetuned(self) -> tuple[AnyLearner, EagerStep]:
        """The student of the last phase and its step; it starts, when first asked for, as the student is then."""
        if self._finetuned is None:
            learner = finetune.finetuned_learner(self.trainee.student, self._config)
            self._finetuned = learner, finetune.finetune_step(learner, self._config, self._device)
            self._finetuned[1].watch = self._watch
        return self._finetuned

    def final(self) -> AnyLearner:
        """The student that the run is for."""
        return self.finetuned()[0] if self._config.finetune.steps else self.trainee.student

    def evaluated(self) -> dict[Network, AnyLearner]:
        """The networks that can judge any image: a teacher of stored rows knows no other images."""
        networks: dict[Network, AnyLearner] = {"student": self.trainee.student}
        if self.trainee.teacher is not None and not self._config.data.store:
            networks["teacher"] = self.trainee.teacher
        return networks

    def state(self) -> dict[str, Tensor]:
        """Every tensor that training continues from."""
        tensors = self.trainee.state()
        if self._finetuned is not None:
            learner, step = self._finetuned
            tensors |= {f"finetuned/{name}": value for name, value in learner.state().items()}
            tensors |= {f"finetune_step/{name}": value for name, value in step.state().items()}
        return tensors

    def own(self) -> set[str]:
        """The names in `state()` that may differ between ranks."""
        return self.trainee.own() | self._of_finetuned(lambda learner: learner.own())

    def sharded(self) -> set[str]:
        """The names in `state()`, of any rank, whose tensors are pieces."""
        return self.trainee.sharded() | self._of_finetuned(lambda learner: learner.sharded())

    def load(self, tensors: Mapping[str, Tensor], *, finetuning: bool) -> None:
        """Continues from a state; `finetuning` says whether it is one of the last phase."""
        self.trainee.load(tensors)
        if finetuning:
            learner, step = self.finetuned()
            learner.load(below(tensors, "finetuned"))
            step.load(below(tensors, "finetune_step"))

    def close(self) -> None:
        """Takes down what the networks are held by."""
        for learner in self.trainee.learners().values():
            learner.close()
        if self._finetuned is not None:
            self._finetuned[0].close()

    def _of_finetuned(self, names: Callable[[AnyLearner], set[str]]) -> set[str]:
        return set() if self._finetuned is None else {f"finetuned/{name}" for name in names(self._finetuned[0])}
