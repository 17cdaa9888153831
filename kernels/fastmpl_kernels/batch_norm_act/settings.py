"""The vocabulary of batch_norm_act: activations, the hook between ranks, and the constants of one call."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from torch import Tensor

Activation = Literal["none", "relu", "leaky_relu", "silu"]
NUMBER: dict[str, int] = {name: number for number, name in enumerate(get_args(Activation))}  # as in csrc/activation.hpp

Reduce = Callable[[Tensor], Tensor]
"""Sums one float64 vector over ranks and returns the sum, in place or not. Called by every rank, or by none: once in
forward, once in backward, once in forward mode."""


class Settings(NamedTuple):
    """What of one call is not a tensor; `activation` by its number."""

    momentum: float
    eps: float
    activation: int
    slope: float
    reduce: Reduce | None
