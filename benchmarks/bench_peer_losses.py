"""Are the fused losses as near to float64 as those that people install? `python -m benchmarks.bench_peer_losses`.

The mean cross-entropy with labels of 64 rows, and its gradient by the logits: this project's kernels, torch's function,
Liger-Kernel's Triton kernel, and cut-cross-entropy (whose logits are a product: here with the unit matrix). Triton kernels
run in its interpreter, which computes what a GPU would but says nothing about time. cut-cross-entropy's own kernels do not
run there, so its compiled form stands for it. A library that is not installed is left out: `pip install liger-kernel`,
`cut-cross-entropy`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.records import Record, Row, save
from fastmpl_kernels import dispatch, library
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy

ROWS: Final = 64
CLASSES: Final = (10, 1000)
DTYPES: Final = (torch.float32, torch.bfloat16)
Loss = Callable[[Tensor, Tensor], Tensor]  # of logits [N, K] and labels [N]


def ours(backend: dispatch.Choice) -> Loss:
    def call(logits: Tensor, labels: Tensor) -> Tensor:
        with dispatch.use(backend):
            return soft_cross_entropy(logits, labels)

    return call


def losses() -> Iterator[tuple[str, Loss]]:
    """By name; those that are installed."""
    yield "torch", F.cross_entropy
    if library.available():
        yield "fastmpl, C++", ours("native")
    if dispatch.is_interpreted():
        yield "fastmpl, Triton", ours("triton")
        with suppress(ImportError):
            yield "Liger-Kernel", import_module("liger_kernel.transformers.functional").liger_cross_entropy
    with suppress(ImportError):
        linear = import_module("cut_cross_entropy").linear_cross_entropy

        def cut(logits: Tensor, labels: Tensor) -> Tensor:
            unit = torch.eye(logits.shape[1], dtype=logits.dtype)
            result: Tensor = linear(logits, unit, labels, impl="torch_compile")
            return result

        yield "cut-cross-entropy, compiled", cut


def value_and_gradient(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, from logits of any type. The logits are copied: some kernels write their gradient into them."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf * 1, labels)  # a leaf must not be written
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach().double(), gradient.double()


def rows() -> Iterator[Row]:
    for classes in CLASSES:
        for dtype in DTYPES:
            torch.manual_seed(0)
            logits, labels = (3 * torch.randn(ROWS, classes)).to(dtype), torch.randint(classes, (ROWS,))
            value, gradient = value_and_gradient(F.cross_entropy, logits.double(), labels)
            for name, loss in losses():
                found, slope = value_and_gradient(loss, logits, labels)
                yield {
                    "loss": name,
                    "classes": classes,
                    "dtype": str(dtype).removeprefix("torch."),
                    "error of the loss": f"{float((found - value).abs() / value):.1e}",
                    "error of the gradient": f"{float((slope - gradient).norm() / gradient.norm()):.1e}",
                }


def main() -> None:
    if not dispatch.is_interpreted():  # Triton reads it when it is imported
        module = "benchmarks.bench_peer_losses"
        os.execve(sys.executable, [sys.executable, "-m", module], {**os.environ, "TRITON_INTERPRET": "1"})
    torch.set_num_threads(1)
    found = list(rows())
    for row in found:
        print("  ".join(f"{value:>27}" for value in row.values()))
    print(save(Record("peer_losses", "table", found, {"rows": ROWS})))


if __name__ == "__main__":
    main()
