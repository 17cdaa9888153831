"""The data types of batch_norm_act: its activations, the hook that sums over ranks, and what its kernels take."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from torch import Tensor

Activation = Literal["none", "relu", "leaky_relu", "silu"]
NUMBER: dict[str, int] = {name: number for number, name in enumerate(get_args(Activation))}  # as in csrc/activation.hpp
NAMES: dict[int, Activation] = dict(enumerate(get_args(Activation)))

Reduce = Callable[[Tensor], Tensor]
"""Sums one float64 vector over all ranks and returns the sum; it may write into its argument. Every rank calls it or none
does: once in the forward pass, once in the backward pass, once in forward mode."""


class Settings(NamedTuple):
    """The arguments of one call that are not tensors. `activation` is a number of NUMBER."""

    momentum: float
    eps: float
    activation: int
    slope: float
    reduce: Reduce | None


class Norm(NamedTuple):
    """The parameters of a norm `[C]`, the residual that is added to it (x's shape), and the activation that follows."""

    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    activation: int
    slope: float


class Running(NamedTuple):
    """The running statistics `[C]` that a call moves by `momentum` (None: there are none), and the variance's eps."""

    mean: Tensor | None
    var: Tensor | None
    momentum: float
    eps: float


class Tangents(NamedTuple):
    """The tangents of the input, of the parameters and of the residual."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None


class Addend(NamedTuple):
    """What the forward direction first adds to its input, in place, and what it adds to the input's tangent (None without
    forward mode)."""

    value: Tensor
    tangent: Tensor | None = None
