"""Three-way numerics: ours against float64, allowed what torch in the same type is off by, and a little."""

import torch
from torch import Tensor

from fastmpl_kernels import dispatch

# What one rounding of the type costs, relative to the largest value.
ROUNDING = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7}


def kernel_backend() -> dispatch.Choice:
    """The kernels under test in this process: Triton where its interpreter was asked for, else native."""
    return "triton" if dispatch.interpreted() else "native"


def assert_as_good(name: str, ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """|ours - exact| <= |theirs - exact| + one rounding, in the largest element."""
    assert ours.shape == exact.shape, name
    assert ours.isfinite().all(), f"{name}: an element was not written, or is not finite"
    scale = exact.abs().max().item()
    allowed = (theirs.double() - exact).abs().max().item() + scale * ROUNDING[ours.dtype]
    error = (ours.double() - exact).abs().max().item()
    assert error <= allowed, f"{name}: off by {error:.2e}, allowed {allowed:.2e} at scale {scale:.2e}"
