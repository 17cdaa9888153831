"""The bytes that a rank holds of a learner, by what they are, measured on the tensors themselves."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmpl.config import SystemConfig
from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.zero.learner import ZeroLearner
from fastmpl.models import build
from fastmpl.models.reduced_teacher import ReducedTeacher
from tests.step.worlds import optimiser

CLASSES = 4


def networks(depth: int) -> dict[str, nn.Module]:
    """Of many small layers: DeepSpeed keeps whole the gradients of parameters that its cuts go through."""
    student = build(
        "perceptron", classes=CLASSES, image_shape=(1, 4, 4), dropout=0.0, norm="group", width=16, depth=depth, seed=1
    )
    return {"student": student, "teacher": ReducedTeacher(CLASSES, 16, depth, 2)}


@dataclass(frozen=True)
class Holdings:
    """A job of each rank: what it holds of both networks at each stage, in bytes."""

    depth: int
    optimiser: str = "adamw"
    stages: tuple[int, ...] = (0, 1, 2, 3)

    def __call__(self, ranks: Ranks) -> dict[tuple[str, int], dict[str, int]]:
        return {
            (role, stage): held_bytes(network, self.optimiser, stage, ranks, average=0.9 if role == "student" else 0.0)
            for stage in self.stages
            for role, network in networks(self.depth).items()
        }


def held_bytes(network: nn.Module, name: str, stage: int, ranks: Ranks, *, average: float) -> dict[str, int]:
    """After one backward pass; the parameters after the step that followed."""
    system = SystemConfig(engine="zero", zero_stage=stage)
    learner = ZeroLearner(network, optimiser(name), system, steps=10, average=average, ranks=ranks)
    inputs = (8, 1, 4, 4) if average else (8, CLASSES)
    images = torch.rand(inputs, generator=torch.Generator().manual_seed(ranks.rank))
    learner.accumulate(learner.forward(images, torch.tensor(0)).square().mean())
    gradients = storages(_gradients(learner))
    learner.apply(torch.tensor(0))
    found = {
        "parameters": storages(_parameters(learner)),
        "gradients": gradients,
        "optimiser": storages(learner.optimiser.state().values()),
        "average": 0 if learner.average is None else storages(learner.average.tensors.values()),
    }
    learner.close()
    return found


def storages(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory behind these, each once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _parameters(learner: ZeroLearner) -> list[Tensor]:
    """What the network is made of, and the optimiser's copy where there is one."""
    every: list[Any] = list(learner.module.parameters())
    pieces = [p.ds_tensor for p in every] if learner.stage == 3 else []
    return [*every, *pieces, *learner.shards.tensors.values()]


def _gradients(learner: ZeroLearner) -> list[Tensor]:
    zero = learner.engine.optimizer
    kept = [p.grad for p in learner.module.parameters() if p.grad is not None]
    if learner.stage == 2:
        kept += zero.all_grad_tensors[0]
    return [*kept, *zero.averaged_gradients[0]] if learner.stage == 3 else kept
