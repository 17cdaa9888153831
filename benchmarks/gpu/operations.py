"""Every fused operation as a function of plain tensors, for any float type: with its backward, and the bytes it must move.

Letters: N rows or images, K classes, C channels.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import batch_norm_act
from fastmpl_kernels.batch_norm_act.add import add_batch_norm_act
from fastmpl_kernels.library import available
from fastmpl_kernels.sgd_ema import global_norm, inner_product, sgd_ema
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.student_objective import student_objective
from fastmpl_kernels.teacher_objective import (
    ExactFeedback,
    Feedback,
    PerExampleFeedback,
    ScalarFeedback,
    UdaSettings,
    teacher_objective,
)

Call = Callable[..., list[Tensor]]
Layout = Literal["plain", "odd stride", "misaligned"]
LAYOUTS: Final[tuple[Layout, ...]] = ("plain", "odd stride", "misaligned")


class Operation(NamedTuple):
    """`call` of float tensors gives every float result that it has, gradients included.

    inputs: how many tensors `call` takes; beside maps, two scales more. kind: their shapes, rows [N, K], maps [N, C, H, W]
    with [C] scales, or lists of parameters. moved: how often a whole input, or a result of its size, must at least travel
    through memory.
    """

    name: str
    kind: Literal["rows", "maps", "parameters"]
    inputs: int
    call: Call
    moved: int
    types: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


def backend_of(device: torch.device) -> dispatch.Choice:
    """The kernels that serve on this device."""
    if device.type == "cuda":
        return "triton"
    return "native" if available() else "reference"


def _with_gradients(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], wanted: int) -> list[Tensor]:
    """The loss (or output) and its gradient by the first `wanted` inputs, at an upstream gradient of ones."""
    leaves = [x.detach().requires_grad_(i < wanted) for i, x in enumerate(inputs)]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves[:wanted], torch.ones_like(value))]


def _numbers(logits: Tensor) -> Tensor:
    """A number for each row, counted from the last: the last rows have the same ones however many come before."""
    return torch.arange(logits.shape[0] - 1, -1, -1, device=logits.device)


def _labels(logits: Tensor) -> Tensor:
    return _numbers(logits) % logits.shape[1]


def _norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    return batch_norm_act(x, weight, bias, activation="leaky_relu", slope=0.1, residual=residual)


def _norm_backward(x: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor) -> list[Tensor]:
    return _with_gradients(lambda *leaves: _norm(*leaves) * upstream, (x, weight, bias), 3)


def _norm_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> list[Tensor]:
    return _with_gradients(lambda x, r: _norm(x, weight, bias, r), (x, residual), 2)


def _norm_of_sum(x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor, elsewhere: Tensor) -> list[Tensor]:
    def both(x: Tensor, addend: Tensor) -> Tensor:
        total, y = add_batch_norm_act(x * 1, addend, weight, bias, activation="leaky_relu", slope=0.1)
        return torch.cat([y, total * elsewhere])

    return _with_gradients(both, (x, addend), 2)


@torch.no_grad()
def _norm_tangent(x: Tensor, weight: Tensor, bias: Tensor, direction: Tensor) -> list[Tensor]:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)  # type: ignore[no-untyped-call]
        y = forward_ad.unpack_dual(_norm(dual, weight, bias))  # type: ignore[no-untyped-call]
        return [y.primal, y.tangent]


def _student(targets: Literal["soft", "sampled", "argmax"], label_logits: Tensor, logits: Tensor) -> list[Tensor]:
    index = _numbers(logits)
    key = torch.full((), 7, dtype=torch.int64, device=logits.device)

    def loss(x: Tensor) -> Tensor:
        found = student_objective(
            label_logits, x, targets=targets, temperature=0.7, label_smoothing=0.1, threshold=0.05,
            **({"key": key, "index": index} if targets == "sampled" else {}),
        )  # fmt: skip
        return found.loss

    return _with_gradients(loss, (logits,), 1)


def _feedback(kind: str, tangent: Tensor) -> Feedback | None:
    one = torch.ones((), device=tangent.device)
    if kind == "exact":
        return ExactFeedback(tangent, one / len(tangent), one)
    if kind == "per_example":
        return PerExampleFeedback(tangent[:, 0].float() / len(tangent), _labels(tangent), one)
    return ScalarFeedback(0.3 * one / len(tangent), _labels(tangent), one) if kind == "scalar" else None


def _teacher(
    kind: str, view: Literal["strong", "weak"], labelled: Tensor, strong: Tensor, weak: Tensor, tangent: Tensor
) -> list[Tensor]:
    uda = UdaSettings(torch.ones((), device=strong.device), 0.7, 0.02) if view == "strong" else None
    feedback = _feedback(kind, tangent)
    if strong.dtype == torch.float64 and isinstance(feedback, PerExampleFeedback):
        feedback = feedback._replace(credit=tangent[:, 0] / len(tangent))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        pair = (y, weak) if view == "strong" else (strong, y)
        return teacher_objective(x, _labels(x), *pair, uda=uda, feedback=feedback, label_view=view).loss

    return _with_gradients(loss, (labelled, strong if view == "strong" else weak), 2)


def _cross_entropy(logits: Tensor) -> list[Tensor]:
    return _with_gradients(lambda x: soft_cross_entropy(x, _labels(x), label_smoothing=0.1), (logits,), 1)


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> list[Tensor]:
    distribution = torch.softmax(target, -1)
    return _with_gradients(lambda x: soft_cross_entropy(x, distribution), (logits,), 1)


def _update(parameter: Tensor, gradient: Tensor, momentum: Tensor, average: Tensor) -> list[Tensor]:
    """Two parameters: the tensor as it is, and a part of it whose size no block divides."""
    values = [[v.clone(), v.flatten()[: v.numel() // 3 + 1].clone()] for v in (parameter, gradient, momentum, average)]
    lr = torch.full((), 0.1, device=parameter.device, dtype=parameter.dtype)
    p, g, m, a = values
    sgd_ema(
        p, g, m, a, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True, decay=0.99,
        clip_factor=torch.full_like(lr, 0.5), found_inf=torch.zeros_like(lr),
    )  # fmt: skip
    return [*p, *m, *a]


OPERATIONS: Final = (
    Operation("batch_norm_act", "maps", 2, _norm_backward, 8),
    Operation("batch_norm_act with a residual", "maps", 2, _norm_residual, 11),
    Operation("batch_norm_act of a sum", "maps", 3, _norm_of_sum, 11),
    Operation("batch_norm_act, forward mode", "maps", 2, _norm_tangent, 6),
    Operation("student_objective, soft", "rows", 2, partial(_student, "soft"), 3),
    Operation("student_objective, sampled", "rows", 2, partial(_student, "sampled"), 3),
    Operation("student_objective, argmax", "rows", 2, partial(_student, "argmax"), 3),
    Operation("teacher_objective, exact", "rows", 4, partial(_teacher, "exact", "strong"), 6),
    Operation("teacher_objective, scalar", "rows", 4, partial(_teacher, "scalar", "strong"), 5),
    Operation("teacher_objective, per example, weak", "rows", 4, partial(_teacher, "per_example", "weak"), 4),
    Operation("teacher_objective, no feedback", "rows", 4, partial(_teacher, "off", "strong"), 5),
    Operation("soft_cross_entropy, labels", "rows", 1, _cross_entropy, 2),
    Operation("soft_cross_entropy, distributions", "rows", 2, _soft_cross_entropy, 3),
    Operation("sgd_ema", "parameters", 4, _update, 7, (torch.float32,)),
    Operation("global_norm", "parameters", 1, lambda g: [global_norm([g, g[:1]])], 1, (torch.float32,)),
    Operation("inner_product", "parameters", 2, lambda a, b: [inner_product([a], [b])], 2, (torch.float32,)),
)


def _laid(values: Tensor, layout: Layout) -> Tensor:
    """The same values [N, ...] with rows that are not a multiple of 16 bytes apart, or that do not begin at one."""
    if layout == "odd stride" and values.dim() == 2:
        wide = values.new_full((len(values), values.shape[1] + 3), float("nan"))
        wide[:, : values.shape[1]] = values
        return wide[:, : values.shape[1]]
    if layout == "misaligned":
        flat = torch.empty(values.numel() + 1, dtype=values.dtype, device=values.device)[1:]
        laid = torch.as_strided(flat, values.shape, values.stride(), flat.storage_offset())
        return laid.copy_(values)
    return values


def make_inputs(
    operation: Operation,
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    layout: Layout = "plain",
    side: int = 8,
) -> list[Tensor]:
    """Random inputs: rows [rows, width], maps [rows, width, side, side] channels-last with two [width] after the first, or
    parameters [rows, width, 3, 3]."""
    generator = torch.Generator(device).manual_seed(rows * 100_003 + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    if operation.kind == "rows":
        return [_laid(normal(rows, width), layout) for _ in range(operation.inputs)]
    if operation.kind == "parameters":
        return [_laid(normal(rows, width, 3, 3), layout) for _ in range(operation.inputs)]
    maps = [
        normal(rows, width, side, side).contiguous(memory_format=torch.channels_last) for _ in range(operation.inputs)
    ]
    x, *others = (_laid(values, layout) for values in maps)
    return [x, normal(width), normal(width), *others]


def run_on(operation: Operation, backend: dispatch.Choice, inputs: list[Tensor]) -> list[Tensor]:
    with dispatch.use(backend):
        return operation.call(*inputs)


def largest_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest error of any result, relative to that result's largest value; infinite for a result with a NaN."""
    pairs = [(a.double(), b) for a, b in zip(found, exact, strict=True)]
    errors = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs]
    return max(float("inf") if math.isnan(e) else e for e in errors)
