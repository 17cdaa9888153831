"""What differs between two steps of one run: the step's number, and the keys of its random draws.

Everything is a pure function of (seed, step, purpose) on the device, so that a resumed run, another schedule, a paired
experiment and a captured graph see the same draws.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl_kernels import keyed

# The purposes of a step's draws.
LABEL, TEACHER, OBSERVER, STUDENT, VALIDATION, CONTROL = range(6)


PURPOSES = 6


class Moment(NamedTuple):
    """One step's number, keys and ramped weight, on the device; made by `moment`."""

    step: Int[Tensor, ""]
    draws: Int[Tensor, "P"]  # by purpose
    passes: Int[Tensor, "parts P"]  # by micro-batch and purpose
    consistency_weight: Float[Tensor, ""]
    number: int = 0  # of the micro-batch

    def draw(self, purpose: int) -> Int[Tensor, ""]:
        """The key of one purpose's draws in this step, the same on every rank: draws of images, or of the step."""
        return self.draws[purpose]

    def dropout(self, purpose: int) -> Int[Tensor, ""]:
        """The key of one pass's dropout on this rank; passes that are compared share a purpose."""
        return self.passes[self.number, purpose]

    def part(self, number: int) -> "Moment":
        """The same moment for one of the step's micro-batches, whose dropout is its own."""
        return self._replace(number=number)


def moment(
    seed: Int[Tensor, ""],
    step: Int[Tensor, ""],
    consistency_weight: Float[Tensor, ""],
    *,
    rank: int = 0,
    parts: int = 1,
) -> Moment:
    """The moment of a step: all its keys at once, since each alone would cost as many launches."""
    purposes = torch.arange(PURPOSES, device=step.device)
    draws = keyed.splitmix64(keyed.splitmix64(seed + step) + purposes)
    numbers = torch.arange(parts, device=step.device).unsqueeze(1)
    return Moment(step, draws, keyed.splitmix64(draws + rank * parts + numbers + 1), consistency_weight)


class Report(NamedTuple):
    """What a step did, each 0-D on the device; zero where the method has no such thing."""

    student_loss: Float[Tensor, ""]
    supervised_loss: Float[Tensor, ""]  # of whichever network sees true labels
    pseudo_loss: Float[Tensor, ""]  # consistency loss
    feedback_loss: Float[Tensor, ""]
    feedback: Float[Tensor, ""]  # what the student's update took off its validation loss; > 0: the labels helped
    feedback_size: Float[Tensor, ""]  # root mean square of the credit
    coverage: Float[Tensor, ""]  # share of unlabelled images with a confident label
    confidence: Float[Tensor, ""]  # mean largest probability of the labels
    student_norm: Float[Tensor, ""]  # of the gradient
    teacher_norm: Float[Tensor, ""]
    student_rate: Float[Tensor, ""]
    teacher_rate: Float[Tensor, ""]
    skipped: Float[Tensor, ""]  # updates not taken because their gradient was not finite


def nothing(like: Tensor) -> Report:
    """A report of zeros."""
    zero = torch.zeros((), device=like.device, dtype=torch.float32)
    return Report(*(zero,) * len(Report._fields))
