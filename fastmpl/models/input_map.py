"""Shows a network images in the normalisation that it was trained with, whatever that of the batches.

Two networks of a step may expect different constants. Batches have one of the two, and an affine map of constants stands
in front of the other network.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

Constants = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel
ALIKE = 0.01  # of a grey level of 255: what rounding makes of the same constants


def differ(one: Constants, other: Constants) -> bool:
    """Whether two normalisations of pixels in [0, 255] differ in their channels, or by more than rounding."""
    return (
        len(one[0]) != len(other[0])
        or max(abs(a - b) for a, b in zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True)) > ALIKE
    )


def map_inputs(network: nn.Module, given: Constants, own: Constants, grey: Sequence[float] = ()) -> nn.Module:
    """Puts in front of `network`, in place, the map from inputs normalised by `given` to inputs normalised by `own`.

    grey: shares of red, green and blue in a grey pixel, for a network of one channel in batches of three. A network of
    three channels in batches of one sees the one three times.

    Its constants are buffers that are not saved: they follow from the configuration. The names of the network's tensors
    and blocks stay.
    """
    (given_mean, given_std), (own_mean, own_std) = (
        (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in constants) for constants in (given, own)
    )
    # x = (pixel - given_mean) / given_std, and the network wants (pixel - own_mean) / own_std
    scale, shift, hook = given_std / own_std, (given_mean - own_mean) / own_std, _map
    if len(given[0]) > len(own[0]):
        shares = torch.tensor(grey, dtype=torch.float64)[:, None, None]
        scale, shift, hook = shares * scale, (shares * shift).sum(0, keepdim=True), _map_to_grey
    network.register_buffer("input_scale", scale.float(), persistent=False)
    network.register_buffer("input_shift", shift.float(), persistent=False)
    network.register_forward_pre_hook(hook)
    return network


def _map(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs in float32 or wider: buffers decide, and a loader may give bfloat16."""
    return (inputs[0] * network.input_scale + network.input_shift, *inputs[1:])


def _map_to_grey(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return ((inputs[0] * network.input_scale).sum(1, keepdim=True) + network.input_shift, *inputs[1:])
