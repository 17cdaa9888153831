"""Runs steps one by one, and owns the state of a run that is neither in the networks nor in the data."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.learners.rates import ramp
from fastmpl.learners.state import Placement
from fastmpl.step.step_keys import Moment, Report, moment
from fastmpl_kernels import keyed

Watch = Callable[[Report], object]
Run = Callable[[Sequence[Batch], Moment, Tensor], Report]  # micro-batches, the moment, the baseline of the feedback


def _ignore(report: Report) -> None: ...


class Ramp(NamedTuple):
    """The weight of the consistency loss grows from 0 to `weight` over `steps` steps."""

    weight: float = 0.0
    steps: int = 0


class EagerStep:
    """Calls `run` with the moment of each step. Its state is the number of the next step and the baseline.

    `watch` gets the report of each step inside the step, and so inside its CUDA graph: it must not read it on the host.
    """

    def __init__(
        self, run: Run, *, seed: int, ramp: Ramp, device: torch.device, rank: int = 0, accumulate: int = 1
    ) -> None:
        self.run, self.ramp, self.rank, self.accumulate = run, ramp, rank, accumulate
        self.watch: Watch = _ignore
        self.step: Int[Tensor, ""] = torch.zeros((), dtype=torch.int64, device=device)
        self.baseline: Float[Tensor, ""] = torch.zeros((), device=device)
        # hashed: the keys are functions of seed + step, and neighbouring seeds would share their draws
        self.seed: Int[Tensor, ""] = keyed.splitmix64(torch.full((), seed, dtype=torch.int64, device=device))

    def __call__(self, batch: Batch) -> Report:
        weight = ramp(self.step, peak=self.ramp.weight, over=self.ramp.steps)
        now = moment(self.seed, self.step, weight, rank=self.rank, parts=self.accumulate)
        report = self.run(batch.parts(self.accumulate), now, self.baseline)
        self.watch(report)
        self.step += 1
        return report

    def state(self) -> dict[str, Tensor]:
        return {"step": self.step, "baseline": self.baseline}

    def placement(self) -> Placement:
        return Placement()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.step.copy_(tensors["step"])
        self.baseline.copy_(tensors["baseline"])
