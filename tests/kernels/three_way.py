"""Three-way numerics: compares an implementation, and the reference in the same dtype, with float64.

An implementation passes if its error is at most the reference's plus an allowance: a few roundings of the largest element.
The same tests run on the native library and in Triton's interpreter (test_triton_interpreter.py starts them there).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmpl_kernels import dispatch, library

INTERPRETED = dispatch.is_interpreted()
BACKEND: dispatch.Choice = "triton" if INTERPRETED else "native"  # the kernels under test in this process
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLASSES = [2, 17, 1000] if INTERPRETED else [1, 2, 10, 17, 100, 1000, 21841]
ROWS = 3 if INTERPRETED else 13
# The interpreter truncates to bfloat16 where hardware rounds, and backward rounds once more.
ALLOWANCE = {torch.float32: 1e-5, torch.bfloat16: 3 * 2**-8 if INTERPRETED else 2**-8, torch.float16: 2**-10}

# What one rounding of the type costs, relative to the largest value.
ROUNDING = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7}

needs_backend = pytest.mark.skipif(
    not INTERPRETED and not library.available(), reason="needs the native library: build it with cmake"
)


def logits(rows: int, classes: int, dtype: torch.dtype, seed: int, scale: float = 3.0) -> Tensor:
    """Random logits that are exact in `dtype`."""
    return (torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def loss_and_gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor], backend: dispatch.Choice) -> list[Tensor]:
    """The loss and its gradients by `inputs` (zeros for an input that it does not depend on), on one backend."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with dispatch.use(backend):
        value = loss(*leaves)
        gradients = torch.autograd.grad(value * 1.5, leaves, allow_unused=True)
    filled = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]
    return [value.detach(), *filled]


def assert_as_accurate_as_reference(op: str, loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Asserts that BACKEND's loss and gradients are as close to float64 as the reference's in the inputs' dtype."""
    exact = loss_and_gradients(loss, [x.double() for x in inputs], "reference")
    reference = loss_and_gradients(loss, inputs, "reference")
    ours = loss_and_gradients(loss, inputs, BACKEND)
    assert dispatch.last_backend(op) == BACKEND
    for i, (got, same_dtype, truth) in enumerate(zip(ours, reference, exact, strict=True)):
        size = truth.abs().max().clamp(min=1e-2)
        allowance = ALLOWANCE[torch.float32 if i == 0 else inputs[i - 1].dtype]
        assert got.dtype == same_dtype.dtype
        assert torch.isfinite(got).all()
        error, allowed = (got - truth).abs().max() / size, (same_dtype - truth).abs().max() / size + allowance
        assert error <= allowed, f"{op}, {'loss' if i == 0 else f'gradient of input {i - 1}'}: {error} > {allowed}"


@contextmanager
def fresh_memory_poisoned() -> Iterator[None]:
    """Fills fresh memory with NaN and the largest integers, which show an element that nobody writes."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def awkward_copies(x: Tensor) -> dict[str, Tensor]:
    """The same values as columns, as every other row, as every other column, and off by one element in memory."""
    rows, columns = x.shape
    shifted = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(rows, columns)
    return {
        "transposed": x.t().contiguous().t(),
        "every other row": torch.stack([x, x * 0 - 7], 1).view(2 * rows, columns)[::2],
        "every other column": torch.stack([x, x * 0 - 7], 2).view(rows, 2 * columns)[:, ::2],
        "misaligned": shifted.copy_(x),
        "one row for all": x[:1].expand(rows, columns),
    }


def jvp(f: Callable[..., Tensor], primals: tuple[Tensor, ...], backend: dispatch.Choice) -> Any:
    """The tangent of `f` along its own primals."""
    with dispatch.use(backend):
        return torch.func.jvp(f, primals, primals)[1]


def assert_close_to_exact(name: str, ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Asserts |ours - exact| <= |theirs - exact| + one rounding, for the largest element."""
    assert ours.shape == exact.shape, name
    assert ours.isfinite().all(), f"{name}: an element is not finite, or nobody wrote it"
    scale = exact.abs().max().item()
    allowed = (theirs.double() - exact).abs().max().item() + scale * ROUNDING[ours.dtype]
    error = (ours.double() - exact).abs().max().item()
    assert error <= allowed, f"{name}: off by {error:.2e}, allowed {allowed:.2e} at scale {scale:.2e}"
