"""The steps between two that credit the labels, where `feedback.every` is above 1: those of the method without feedback.

What such a step does not measure is NaN, which the meter leaves out: the means of a line are those of the steps that did.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.step.context import StepContext
from fastmpl.step.mpl_step import MplStep
from fastmpl.step.step_metrics import StepMetrics

UNMEASURED: Final = ("feedback_loss", "feedback", "feedback_size", "feedback_ratio")  # by a step that does not credit


@dataclass(frozen=True)
class UncreditedStep:
    """`step` takes both networks' steps without feedback; no tangent, no validation pass, no copy of a gradient."""

    step: MplStep
    unknown: Float[Tensor, ""]  # NaN; made once, so that a step has no operator for it

    def __call__(self, parts: Sequence[Batch], context: StepContext, baseline: Float[Tensor, ""]) -> StepMetrics:
        """One step; `baseline` stays what it is."""
        metrics = self.step(parts, context, baseline)
        return metrics._replace(**dict.fromkeys(UNMEASURED, self.unknown))


def leave_out_credit(step: MplStep, device: torch.device) -> UncreditedStep:
    """The step of the same networks and order without feedback."""
    unknown = torch.full((), torch.nan, device=device)
    return UncreditedStep(replace(step, method=step.method.without_feedback()), unknown)
