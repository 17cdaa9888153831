"""Normalisation: the layer that our networks are made of, and batch statistics that leave no trace.

Feedback compares passes of one network (before and after an update, a tangent beside its value). They must normalise by
the statistics of their own batch, and must not move the running ones: those are recorded once per network and step.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastmpl.models.sync_norm import SumOverRanks
from fastmpl_kernels.batch_norm_act.add import add_in_place
from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d

Norm = Literal["batch", "group", "sync"]


class GroupNormAct(nn.GroupNorm):
    """Group norm, then leaky ReLU: no statistics of the batch, so ranks and micro-batches change nothing."""

    def __init__(self, channels: int, slope: float, eps: float) -> None:
        super().__init__(groups_of(channels), channels, eps=eps)
        self.slope = slope

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return F.leaky_relu(super().forward(input), self.slope)


def groups_of(channels: int) -> int:
    """At most 32 groups (Wu and He, "Group Normalization", 2018), of at least 4 channels where that divides."""
    return math.gcd(channels, min(32, max(1, channels // 4)))


def norm_act(channels: int, norm: Norm, *, slope: float = 0.1, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    """The normalisation of that name followed by leaky ReLU of that slope.

    "batch" has the statistics of each rank's own images, so that more ranks are another network; "sync" those of all.
    """
    if norm == "group":
        return GroupNormAct(channels, slope, eps)
    reduce = SumOverRanks() if norm == "sync" else None
    return BatchNormAct2d(channels, eps, momentum, activation="leaky_relu", slope=slope, reduce=reduce)


class PendingSum(NamedTuple):
    """The output of a residual block before its sum is taken: the norm that reads the sum takes it in its own pass.

    Whoever takes the sum writes it into `branch`, so it is taken once.
    """

    branch: Float[Tensor, "N C H W"]
    shortcut: Float[Tensor, "N C H W"]

    def take(self) -> Float[Tensor, "N C H W"]:
        return add_in_place(self.branch, self.shortcut)


def norm_of_sum(norm: nn.Module, x: Tensor | PendingSum) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N C H W"]]:
    """x, or the sum that it stands for, and the norm of it; a fused batch norm takes both in one pass."""
    replaced = norm.__dict__.get("forward")  # one that is recomputed must not write into what it is given
    takes_sums = replaced is None or getattr(replaced, "takes_sums", False)
    if isinstance(x, PendingSum) and isinstance(norm, BatchNormAct2d) and takes_sums:
        total, normalised = norm(x.branch, addend=x.shortcut)
        return total, normalised
    total = x.take() if isinstance(x, PendingSum) else x
    return total, norm(total)


@contextmanager
def use_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode normalise by the batch and record nothing, within the block.

    Layers in evaluation mode are left as they are. A pass whose backward recomputes activations must run that backward
    within the block too, or the recomputation records what the pass did not.
    """
    changed = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in changed:
        norm.track_running_stats = False  # F.batch_norm is then called with running_mean = None
    try:
        yield
    finally:
        for norm in changed:
            norm.track_running_stats = True


@contextmanager
def repeat_statistics(module: nn.Module) -> Iterator[None]:
    """For the second computation of a pass that has recorded its statistics: the same operators, recording nothing.

    `use_batch_statistics` would call other operators than the first computation did, which recomputation forbids.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
