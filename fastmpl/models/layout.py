"""The memory layout of a network's weights, for real and for fake tensors alike."""

import torch
from torch import nn


def channels_last(module: nn.Module) -> nn.Module:
    """Stores the weights of convolutions channels last, in place, before an optimiser knows them; gives the module.

    torch's own `module.to(memory_format=...)` swaps the data of a parameter, which a fake tensor refuses.
    """
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, held in owner._parameters.items():
            if held is None or held.dim() != 4:
                continue
            if held not in replaced:  # a shared parameter stays shared
                laid_out = held.detach().contiguous(memory_format=torch.channels_last)
                replaced[held] = nn.Parameter(laid_out, held.requires_grad)
            owner._parameters[name] = replaced[held]
    return module
