"""A small channels-last input of batch_norm_act, with its parameters and a residual."""

import torch
from torch import Tensor


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, r = (
        torch.randn(3, 4, 2, 2, generator=generator, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    return x, torch.rand(4, generator=generator, dtype=dtype) + 0.5, torch.randn(4, generator=generator, dtype=dtype), r
