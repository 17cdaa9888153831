"""What differs from step to step: the number of the step, its random keys, the ramped weight of its consistency loss.

All keys are pure functions of (seed, step, purpose) on the device. A resumed run, another order of passes, a paired
experiment and a captured graph therefore see the same draws.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels import keyed

# The purposes of a step's draws.
LABEL, TEACHER, OBSERVER, STUDENT, VALIDATION, CONTROL = range(6)
PURPOSES = 6


class StepContext(NamedTuple):
    """The number, keys and ramped weight of one step, on the device; made by `make_context`."""

    step: Int[Tensor, ""]
    draws: Int[Tensor, "P"]  # by purpose
    passes: Int[Tensor, "parts P"]  # by micro-batch and purpose
    consistency_weight: Float[Tensor, ""]
    number: int = 0  # of the micro-batch

    def draw(self, purpose: int) -> Int[Tensor, ""]:
        """The key of one purpose's draws in this step, the same on every rank: draws per image, or per step."""
        return self.draws[purpose]

    def dropout(self, purpose: int) -> Int[Tensor, ""]:
        """The key of one pass's dropout on this rank; passes that are compared share a purpose."""
        return self.passes[self.number, purpose]

    def part(self, number: int) -> "StepContext":
        """The context of one micro-batch of the step: only its dropout differs."""
        return self._replace(number=number)


def make_context(
    seed: Int[Tensor, ""],
    step: Int[Tensor, ""],
    consistency_weight: Float[Tensor, ""],
    *,
    rank: int = 0,
    parts: int = 1,
) -> StepContext:
    """The context of a step of `parts` micro-batches: all keys at once, since each alone would cost as many launches."""
    purposes = torch.arange(PURPOSES, device=step.device)
    draws = keyed.splitmix64(keyed.splitmix64(seed + step) + purposes)
    numbers = torch.arange(parts, device=step.device).unsqueeze(1)
    return StepContext(step, draws, keyed.splitmix64(draws + rank * parts + numbers + 1), consistency_weight)
