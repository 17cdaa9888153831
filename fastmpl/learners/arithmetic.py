"""The precision of a pass: bf16's autocast and the process-wide switches of TF32. The one place that sets them.

TF32 (10 bits of mantissa in matrix products and convolutions of float32, on NVIDIA GPUs since Ampere) is fine for
training. A difference of two losses, or of the logits at two close parameters, is smaller than its rounding: passes that
are compared run without it. The switches are state of the host, read when a kernel is chosen: a CUDA graph keeps what
they were at its capture.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "bf16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bf16 arithmetic within the block, where it is asked for."""
    # the weight cache would give a pass after an in-place update the weights from before it
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16. Without them a CPU's bf16 convolutions take some ten times those of
    float32."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def describe_precision(device: torch.device, precision: Precision) -> list[str]:
    """What a user should know of that precision on that device; empty as a rule."""
    if precision == "float32" or computes_bf16(device):
        return []
    return [
        'This CPU has no instructions for bf16, which is much slower on it than float32: set system.precision = "float32".'
    ]


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Whether products and convolutions of float32 may use TF32 within the block; restored after it."""
    # the older names: torch keeps the newer ones (fp32_precision) in step with them, and not the other way round
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32, convolution.allow_tf32 = allowed, allowed
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


@contextmanager
def search_convolutions(search: bool) -> Iterator[None]:
    """Whether cuDNN times its algorithms at each new shape within the block and keeps the fastest; restored after it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = search
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def full_precision(precise: bool) -> AbstractContextManager[None]:
    """Switches TF32 off for a pass that is compared; nothing where `precise` is false."""
    return allow_tf32(False) if precise else nullcontext()
