"""A network's shape without its tensors: what `stand_ins.call_with` needs to run it on parameters of one's own.

Feedback runs the student at parameters that it no longer has (the old ones, with a tangent). The student itself may be
wrapped, hooked or sharded by then; a twin made beforehand is not, and costs no memory.
"""

import copy

import torch
from torch import nn


def twin(network: nn.Module) -> nn.Module:
    """A copy of `network` whose parameters and buffers are on `meta`; its modules, modes and names are the same.

    Call it as call_with(twin, {**parameters, **buffers}, images). Hooks are copied: take the twin before
    anything hooks the network. No tensor is copied, not even for a moment, so it also works on fake tensors.
    """
    stand_ins: dict[int, object] = {}
    for parameter in network.parameters():
        empty = torch.empty_like(parameter, device="meta")
        stand_ins[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in network.buffers():
        stand_ins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, stand_ins)  # deepcopy takes what its memo holds instead of copying
