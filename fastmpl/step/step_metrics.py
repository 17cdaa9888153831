"""What a step returns: its metrics, on the device."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class StepMetrics(NamedTuple):
    """What a step did, each 0-D on the device; zero where the method has no such thing, NaN where this step has none."""

    student_loss: Float[Tensor, ""]
    supervised_loss: Float[Tensor, ""]  # of whichever network sees true labels
    pseudo_loss: Float[Tensor, ""]  # consistency loss
    feedback_loss: Float[Tensor, ""]
    feedback: Float[Tensor, ""]  # decrease of the student's validation loss by its update; > 0: the labels helped
    feedback_size: Float[Tensor, ""]  # root mean square of the credit
    coverage: Float[Tensor, ""]  # share of unlabelled images with a confident label
    confidence: Float[Tensor, ""]  # mean largest probability of the labels
    student_norm: Float[Tensor, ""]  # of the gradient
    teacher_norm: Float[Tensor, ""]
    student_rate: Float[Tensor, ""]
    teacher_rate: Float[Tensor, ""]
    skipped: Float[Tensor, ""]  # updates not taken because their gradient was not finite
    # norm of the feedback's gradient over that of the supervised one, at the teacher's logits; last: older files lack it
    feedback_ratio: Float[Tensor, ""]


def zero_metrics(like: Tensor) -> StepMetrics:
    """Metrics of zeros, on the device of `like`."""
    zero = torch.zeros((), device=like.device, dtype=torch.float32)
    return StepMetrics(*(zero,) * len(StepMetrics._fields))
