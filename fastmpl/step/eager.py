"""Runs steps one by one, and owns the state of a run that is neither in the networks nor in the data."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.rates import ramp
from fastmpl.learners.state import Placement
from fastmpl.step.context import StepContext, make_context
from fastmpl.step.step_metrics import StepMetrics
from fastmpl_kernels import keyed

Watch = Callable[[StepMetrics], object]
Step = Callable[[Sequence[Batch], StepContext, Tensor], StepMetrics]  # micro-batches, context, baseline of the feedback


def _ignore(metrics: StepMetrics) -> None: ...


class Ramp(NamedTuple):
    """The weight of the consistency loss grows from 0 to `weight` over `steps` steps."""

    weight: float = 0.0
    steps: int = 0


class EagerStep:
    """Calls `take` with the context of each step. Its state: the number of the next step, and the scalar's baseline.

    Of each `every` steps the last is taken by `take`, the others by `between`. These two kinds have different operators,
    so a tape or a CUDA graph holds one of them. The host knows which kind is next by its own count, `taken`: reading
    `step` would wait for the device.

    `watch` gets the metrics of each step inside the step, and so inside its CUDA graph: it must not read them on the
    host.
    """

    def __init__(
        self,
        take: Step,
        *,
        seed: int,
        ramp: Ramp,
        device: torch.device,
        rank: int = 0,
        accumulate: int = 1,
        between: Step | None = None,
        every: int = 1,
    ) -> None:
        """between: needed where `every` is above 1."""
        self.take, self.ramp, self.rank, self.accumulate = take, ramp, rank, accumulate
        self.between, self.every, self.taken = between, every, 0
        self.watch: Watch = _ignore
        self.step: Int[Tensor, ""] = torch.zeros((), dtype=torch.int64, device=device)
        self.baseline: Float[Tensor, ""] = torch.zeros((), device=device)
        # hashed: the keys are functions of seed + step, and neighbouring seeds would share their draws
        self.seed: Int[Tensor, ""] = keyed.splitmix64(torch.full((), seed, dtype=torch.int64, device=device))

    @property
    def is_between(self) -> bool:
        """Whether the next step is taken by `between`."""
        return (self.taken + 1) % self.every != 0

    def __call__(self, batch: Batch) -> StepMetrics:
        metrics = self.execute(batch)
        self.taken += 1
        return metrics

    def execute(self, batch: Batch) -> StepMetrics:
        """Runs the operators of the next step, which may be recorded. The caller counts the steps that take effect."""
        take = self.between if self.is_between else self.take
        assert take is not None, "a step between two others was not given"
        weight = ramp(self.step, peak=self.ramp.weight, over=self.ramp.steps)
        context = make_context(self.seed, self.step, weight, rank=self.rank, parts=self.accumulate)
        metrics = take(batch.parts(self.accumulate), context, self.baseline)
        self.watch(metrics)
        self.step += 1
        return metrics

    def state(self) -> dict[str, Tensor]:
        return {"step": self.step, "baseline": self.baseline}

    def placement(self) -> Placement:
        return Placement()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.step.copy_(tensors["step"])
        self.taken = int(tensors["step"])
        # versions up to 0.1.0 could save a baseline that one validation loss had made NaN for good
        self.baseline.copy_(tensors["baseline"].nan_to_num(0.0, 0.0, 0.0))
