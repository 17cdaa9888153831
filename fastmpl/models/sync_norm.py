"""Batch norm over the images of all ranks, with forward mode.

With the statistics of the whole global batch, N ranks compute what one process does, feedback included. torch's
SyncBatchNorm refuses CPU tensors and has no forward mode. The learner that owns the network says who the other ranks are
(`synchronise`); until then, and with one rank, these norms are those of one process.

Two forms: the fused norm with its activation, whose sums over the batch go through `SumOverRanks`, and `SyncBatchNorm` for
norms that cannot be fused. Leaves out ranks with different numbers of images, which this project's data never makes, and
double backward.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d


class Together(Protocol):
    """The ranks, as far as a norm needs them (`fastmpl.distributed.ranks.Ranks`)."""

    @property
    def size(self) -> int: ...
    def all_reduce_mean_(self, tensors: list[Tensor]) -> None: ...
    def all_reduce_sum_(self, tensors: list[Tensor]) -> None: ...
    def all_gather(self, mine: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SumOverRanks:
    """The hook of a fused norm: sums a vector of its statistics over ranks, in place; itself without ranks."""

    ranks: Together | None = None

    def __call__(self, vector: Tensor) -> Tensor:
        if self.ranks is not None:
            self.ranks.all_reduce_sum_([vector])
        return vector


class _Normalise(torch.autograd.Function):
    """x -> xhat = (x - m) / s with the mean m and deviation s of each channel over the images of all ranks.

    The derivative is J v = (v - mean(v) - xhat mean(xhat v)) / s, the means over all ranks too. J is symmetric, so the
    same map takes gradients backward and tangents forward: one message of two numbers a channel each.
    """

    @staticmethod
    def forward(x: Tensor, eps: float, ranks: Together) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x, axes, correction=0)
        every = ranks.all_gather(torch.stack([mean, variance]).unsqueeze(0))  # [ranks, 2, C]
        mean = every[:, 0].mean(0)
        # by the ranks' own deviations: E[x^2] - E[x]^2 would cancel
        variance = every[:, 1].mean(0) + (every[:, 0] - mean).square().mean(0)
        inverse = torch.rsqrt(variance + eps)
        return (x - _wide(mean, x)) * _wide(inverse, x), mean, variance, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        normalised, mean, variance, inverse = output
        ctx.ranks = inputs[2]
        ctx.mark_non_differentiable(mean, variance, inverse)
        ctx.save_for_backward(normalised, inverse)
        ctx.save_for_forward(normalised, inverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        normalised, inverse = ctx.saved_tensors
        return _derivative(gradient, normalised, inverse, ctx.ranks), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None, None, None]:
        normalised, inverse = ctx.saved_tensors
        return _derivative(tangent, normalised, inverse, ctx.ranks), None, None, None


def _wide(channels: Float[Tensor, "C"], x: Float[Tensor, "N C *space"]) -> Tensor:
    """A number a channel, so that it broadcasts over x."""
    return channels.view(-1, *(1,) * (x.ndim - 2))


def _derivative(v: Tensor, normalised: Tensor, inverse: Tensor, ranks: Together) -> Tensor:
    axes = [0, *range(2, v.ndim)]
    means = torch.stack([v.mean(axes), (v * normalised).mean(axes)])
    ranks.all_reduce_mean_([means])
    return (v - _wide(means[0], v) - normalised * _wide(means[1], v)) * _wide(inverse, v)


class SyncBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training statistics are those of all ranks; the same state dict."""

    ranks: Together | None = None

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        if self.ranks is None or self.ranks.size == 1 or not self.training:
            return super().forward(input)
        # statistics in float32 under autocast, as torch's own batch norm has them
        precise = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        normalised, mean, variance, _ = _Normalise.apply(precise, self.eps, self.ranks)
        if self.track_running_stats:
            self._record(mean, variance, input.numel() // input.shape[1] * self.ranks.size)
        if self.affine:
            normalised = normalised * _wide(self.weight, input) + _wide(self.bias, input)
        result: Tensor = normalised.to(input.dtype)
        return result

    @torch.no_grad()
    def _record(self, mean: Float[Tensor, "C"], variance: Float[Tensor, "C"], count: int) -> None:
        """Moves the running statistics; the variance is the unbiased one of `count` values, as in torch."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def synchronise(module: nn.Module, ranks: Together) -> None:
    """Tells the synchronised norms inside `module` whose images they share. A single rank needs no sums."""
    for norm in module.modules():
        if isinstance(norm, SyncBatchNorm):
            norm.ranks = ranks
        elif isinstance(norm, BatchNormAct2d) and isinstance(norm.reduce, SumOverRanks):
            norm.reduce = SumOverRanks(ranks) if ranks.size > 1 else None
