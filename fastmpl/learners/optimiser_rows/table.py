"""The table of optimisers. What each allows beside a plain step is in `fastmpl.config.optimisers`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastmpl.config import NetworkConfig
from fastmpl.learners.optimiser_rows import apex
from fastmpl.learners.optimiser_rows.derivatives import (
    SteppedParameter,
    differentiate_adamw,
    differentiate_lamb,
    differentiate_sgd,
)
from fastmpl.learners.optimiser_rows.eager import without_compiler
from fastmpl.learners.optimiser_rows.lamb import Lamb
from fastmpl.learners.optimiser_rows.sgd_ema import SgdEma

Groups = list[dict[str, Any]]
LendAverages = Callable[[Any, Mapping[Tensor, Tensor], Tensor], None]  # optimiser, average by parameter, decay
Derivative = Callable[[Sequence[SteppedParameter], Sequence[Tensor]], list[Tensor]]  # what was stepped, v -> D v


class OptimiserRow(NamedTuple):
    """One optimiser: how it is built, what it keeps, and what it can do beside a plain step."""

    build: Callable[[Groups, NetworkConfig], torch.optim.Optimizer]
    state: tuple[str, ...]  # tensors of the parameter's shape, starting at 0
    derivative: Derivative
    counts: Literal["no", "parameter", "group"] = "no"  # who holds the count of steps, `step`
    # device: it reads `found_inf` itself. restore: its tensors are copied before and put back. host: the host decides
    skips: Literal["device", "restore", "host"] = "device"
    spoils_gradient: bool = False  # whether it writes into the gradients that it is given
    lend_averages: LendAverages | None = None  # how the next step is told to update the moving average too, if it can


def _sgd(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    nesterov = config.optimiser == "nesterov"
    build = without_compiler(torch.optim.SGD)
    return build(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)


def _sgd_ema(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    return without_compiler(SgdEma)(groups, lr=config.lr, momentum=config.momentum)


def _adamw(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    capturable = groups[0]["params"][0].is_cuda  # else a CUDA graph capture of its step is refused
    betas = (config.momentum, 0.999)
    build = without_compiler(torch.optim.AdamW)
    return build(groups, lr=config.lr, betas=betas, fused=True, capturable=capturable)


def _lamb(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    return without_compiler(Lamb)(groups, lr=config.lr, betas=(config.momentum, 0.999))


_MOMENTUM, _MOMENTS = ("momentum_buffer",), ("exp_avg", "exp_avg_sq")

OPTIMISERS: Mapping[str, OptimiserRow] = {
    "sgd": OptimiserRow(_sgd, _MOMENTUM, differentiate_sgd),
    "nesterov": OptimiserRow(_sgd, _MOMENTUM, differentiate_sgd),
    "fastmpl:sgd_ema": OptimiserRow(_sgd_ema, _MOMENTUM, differentiate_sgd, lend_averages=SgdEma.lend_averages),
    "adamw": OptimiserRow(_adamw, _MOMENTS, differentiate_adamw, counts="parameter"),
    "lamb": OptimiserRow(_lamb, _MOMENTS, differentiate_lamb, counts="parameter"),
    "apex:FusedSGD": OptimiserRow(apex.fused_sgd, _MOMENTUM, differentiate_sgd, skips="host"),
    "apex:FusedAdam": OptimiserRow(apex.fused_adam, _MOMENTS, differentiate_adamw, counts="group", skips="restore"),
    "apex:FusedLAMB": OptimiserRow(
        apex.fused_lamb, _MOMENTS, differentiate_lamb, counts="group", skips="host", spoils_gradient=True
    ),
}
