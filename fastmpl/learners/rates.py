"""Learning rates as functions of a step held on the device: a captured step must not bake a rate into its graph."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Schedule = Literal["cosine", "constant"]


def rate(
    step: Int[Tensor, ""], *, peak: float, steps: int, warmup: int, wait: int, schedule: Schedule
) -> Float[Tensor, ""]:
    """The rate of step 0, 1, ...: 0 while waiting, linear over `warmup` steps to `peak`, then a half cosine to 0."""
    since = (step - wait).to(torch.float64)
    rising = ((since + 1) / max(warmup, 1)).clamp(max=1.0)
    share_of_peak = rising
    if schedule == "cosine":
        done = ((since - warmup) / max(steps - wait - warmup, 1)).clamp(0.0, 1.0)
        share_of_peak = torch.minimum(rising, 0.5 * (1 + torch.cos(math.pi * done)))
    return (peak * share_of_peak * (since >= 0)).to(torch.float32)


def ramp(step: Int[Tensor, ""], *, peak: float, over: int) -> Float[Tensor, ""]:
    """A weight that rises linearly from 0 to `peak` in `over` steps."""
    return (peak * ((step + 1).to(torch.float64) / max(over, 1)).clamp(max=1.0)).to(torch.float32)
