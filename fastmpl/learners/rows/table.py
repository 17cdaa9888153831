"""The table of optimisers. What each allows beside a plain step is in `fastmpl.config.optimisers`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastmpl.config import NetworkConfig
from fastmpl.learners.rows import apex
from fastmpl.learners.rows.derivatives import Stepped, of_adamw, of_lamb, of_sgd
from fastmpl.learners.rows.lamb import Lamb
from fastmpl.learners.sgd_ema import SgdEma

Groups = list[dict[str, Any]]
Derivative = Callable[[Sequence[Stepped], Sequence[Tensor]], list[Tensor]]  # what was stepped, v -> D v


class Row(NamedTuple):
    """How an optimiser is built, what its state starts from, D v, and how a step of it is skipped."""

    build: Callable[[Groups, NetworkConfig], torch.optim.Optimizer]
    state: tuple[str, ...]  # tensors of the parameter's shape, starting at 0
    derivative: Derivative
    counts: Literal["no", "parameter", "group"] = "no"  # who holds the count of steps, `step`
    # device: it reads `found_inf` itself. restore: its tensors are copied before and put back. host: the host decides
    skips: Literal["device", "restore", "host"] = "device"
    spoils_gradient: bool = False  # whether it writes into the gradients that it is given


def _sgd(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    nesterov = config.optimiser == "nesterov"
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)


def _sgd_ema(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    return SgdEma(groups, lr=config.lr, momentum=config.momentum)


def _adamw(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def _lamb(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    return Lamb(groups, lr=config.lr, betas=(config.momentum, 0.999))


_MOMENTUM, _MOMENTS = ("momentum_buffer",), ("exp_avg", "exp_avg_sq")

ROWS: Mapping[str, Row] = {
    "sgd": Row(_sgd, _MOMENTUM, of_sgd),
    "nesterov": Row(_sgd, _MOMENTUM, of_sgd),
    "fastmpl:sgd_ema": Row(_sgd_ema, _MOMENTUM, of_sgd),
    "adamw": Row(_adamw, _MOMENTS, of_adamw, counts="parameter"),
    "lamb": Row(_lamb, _MOMENTS, of_lamb, counts="parameter"),
    "apex:FusedSGD": Row(apex.fused_sgd, _MOMENTUM, of_sgd, skips="host"),
    "apex:FusedAdam": Row(apex.fused_adam, _MOMENTS, of_adamw, counts="group", skips="restore"),
    "apex:FusedLAMB": Row(apex.fused_lamb, _MOMENTS, of_lamb, counts="group", skips="host", spoils_gradient=True),
}
