"""The student's loss in plain torch, in any floating type, differentiable in every mode. Compiled steps run it."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastmpl_kernels import keyed
from fastmpl_kernels.rows import expected, widen

Targets = Literal["soft", "sampled", "argmax"]


class StudentObjective(NamedTuple):
    """The loss, the labels that the student learns (for soft targets the most probable class), the rows that count, the
    mean probability of the most probable class, and the share of rows that count. The loss alone carries a gradient."""

    loss: Float[Tensor, ""]
    label: Int[Tensor, " U"]
    mask: Bool[Tensor, " U"]
    confidence: Float[Tensor, ""]
    coverage: Float[Tensor, ""]


def draw(
    logits: Float[Tensor, "U K"], temperature: float, key: Int[Tensor, ""], index: Int[Tensor, " U"]
) -> Int[Tensor, " U"]:
    """Draws labels from softmax(logits / temperature): inverts the cumulative distribution, in 30-bit fixed point, at one
    keyed uniform number a row.

    Integer sums are exact in any order, so a kernel that adds a row in other blocks draws the same label. Gumbel noise
    would need K numbers a row. A class less than 2^-31 times as probable as the most probable one is never drawn.
    """
    relative = torch.exp((logits - logits.amax(-1, keepdim=True)) / temperature)
    cumulative = (relative * 2**30 + 0.5).long().cumsum(-1)
    total = cumulative[:, -1:]
    odd = (keyed.uniform(key, index, 1) * 2**24).long()  # exact: an odd multiple of 2^-24
    point = odd * (total >> 24) + (odd * (total & (2**24 - 1)) >> 24)  # floor(uniform * total) without overflow
    return (cumulative <= point).sum(-1)


def student_objective(
    label_logits: Float[Tensor, "U K"],
    student_logits: Float[Tensor, "U K"],
    targets: Targets,
    temperature: float,
    label_smoothing: float,
    threshold: float,
    key: Int[Tensor, ""] | None,
    index: Int[Tensor, " U"] | None,
) -> StudentObjective:
    """See `fastmpl_kernels.student_objective`."""
    label_logits = widen(label_logits.detach())
    target = torch.softmax(label_logits / temperature, -1)
    confidence = target.amax(-1)
    mask = confidence >= threshold
    if targets == "sampled":
        assert key is not None
        assert index is not None
        label = draw(label_logits, temperature, key, index)
    else:
        label = label_logits.argmax(-1)
    if targets != "soft":
        # as a floating type: an integer's product with a number is float32
        target = torch.nn.functional.one_hot(label, target.shape[-1]).to(target.dtype)
    target = (1 - label_smoothing) * target + label_smoothing / target.shape[-1]
    loss = -expected(target, torch.log_softmax(widen(student_logits), -1))
    return StudentObjective(
        loss.masked_fill(~mask, 0.0).mean(), label, mask, confidence.mean(), mask.to(confidence.dtype).mean()
    )
