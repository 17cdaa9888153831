"""A second derivative through an op is right (the reference's) or raises; it is never silently wrong.

Autograd prunes a node that raises in its backward where another path leads to the parameters. So every case here is a
network, in which the first gradient depends on the parameters by other paths too.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import batch_norm_act
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.student_objective import student_objective
from fastmpl_kernels.teacher_objective import ExactFeedback, ScalarFeedback, UdaSettings, teacher_objective
from tests.kernels.three_way import BACKEND, logits, needs_backend

ROWS, CLASSES = 6, 5
LABELS = torch.arange(ROWS) % CLASSES
ONE = torch.tensor(1.0)


def batch_norm_loss(z: Tensor) -> Tensor:
    return (batch_norm_act(z, None, None, activation="silu") * torch.linspace(-1, 1, CLASSES, dtype=z.dtype)).sum()


def teacher_loss(z: Tensor) -> Tensor:
    weak = logits(ROWS, CLASSES, torch.float32, 3).to(z.dtype)
    feedback = ScalarFeedback(ONE, LABELS, ONE)
    return teacher_objective(z, LABELS, z, weak, uda=UdaSettings(ONE, 0.5), feedback=feedback, temperature=0.7).loss


def exact_loss(z: Tensor) -> Tensor:
    weak = logits(ROWS, CLASSES, torch.float32, 3).to(z.dtype)
    feedback = ExactFeedback(weak, torch.tensor(0.1), ONE)
    return teacher_objective(z, LABELS, z, weak, feedback=feedback).loss


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "batch_norm_act": batch_norm_loss,
    "soft_cross_entropy": lambda z: soft_cross_entropy(z, LABELS, label_smoothing=0.1),
    "student_objective": lambda z: student_objective(logits(ROWS, CLASSES, torch.float32, 2).to(z.dtype), z).loss,
    "teacher_objective, scalar": teacher_loss,
    "teacher_objective, exact": exact_loss,
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def network(name: str, dtype: torch.dtype) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A loss of two layers, its parameters, and a direction."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64).to(dtype)
    shapes = ((4, 7), (7, CLASSES))
    weights = tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    direction = tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return lambda w1, w2: LOSSES[name]((x @ w1).tanh() @ w2), weights, direction


def hessian_product(loss: Callable[..., Tensor], weights: tuple[Tensor, ...], direction: tuple[Tensor, ...]) -> Any:
    leaves = [w.clone().requires_grad_() for w in weights]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    along = sum((g * d).sum() for g, d in zip(first, direction, strict=True))
    return torch.autograd.grad(along, leaves)


def hessian_product_of_func(loss: Callable[..., Tensor], weights: tuple[Tensor, ...], direction: Any) -> Any:
    """Reverse over reverse."""
    n = tuple(range(len(weights)))

    def along(*w: Tensor) -> Tensor:
        first = torch.func.grad(loss, n)(*w)
        return sum((g * d).sum() for g, d in zip(first, direction, strict=True))  # type: ignore[return-value]

    return torch.func.grad(along, n)(*weights)


def hessian_product_of_jvp(loss: Callable[..., Tensor], weights: tuple[Tensor, ...], direction: Any) -> Any:
    """Forward over reverse."""
    return torch.func.jvp(torch.func.grad(loss, tuple(range(len(weights)))), weights, direction)[1]


PRODUCTS = [hessian_product, hessian_product_of_func, hessian_product_of_jvp]


@needs_backend
@each_loss
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_kernel_refuses_a_hessian_product(name: str, product: Callable[..., Any]) -> None:
    with dispatch.use(BACKEND), pytest.raises(NotImplementedError, match=r"no second derivative|tangent would be lost"):
        product(*network(name, torch.float32))


@each_loss
@pytest.mark.parametrize("product", PRODUCTS)
def test_float64_has_the_true_hessian_product(name: str, product: Callable[..., Any]) -> None:
    loss, weights, direction = network(name, torch.float64)
    found = product(loss, weights, direction)

    def gradient(step: float) -> tuple[Tensor, ...]:
        moved = [(w + step * d).requires_grad_() for w, d in zip(weights, direction, strict=True)]
        return torch.autograd.grad(loss(*moved), moved)

    size = 1e-4
    for found_part, after, before in zip(found, gradient(size), gradient(-size), strict=True):
        expected = (after - before) / (2 * size)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found_part, expected, rtol=1e-5, atol=1e-6)


@needs_backend
@each_loss
def test_first_derivatives_of_every_kind_are_served(name: str) -> None:
    loss, weights, direction = network(name, torch.float32)
    leaves = [w.clone().requires_grad_() for w in weights]
    with dispatch.use(BACKEND):
        expected = torch.autograd.grad(loss(*leaves), leaves)
        found = torch.func.grad(loss, (0, 1))(*weights)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        value, pull = torch.func.vjp(loss, *weights)
        torch.testing.assert_close(pull(torch.ones_like(value)), expected, rtol=1e-4, atol=1e-5)
        _, along = torch.func.jvp(loss, weights, direction)
        torch.testing.assert_close(
            along, sum((g * d).sum() for g, d in zip(expected, direction, strict=True)), rtol=1e-3, atol=1e-4
        )


@needs_backend
@each_loss
@pytest.mark.parametrize("with_graph", [False, True])
def test_dual_level_gives_the_tangent_of_a_loss(name: str, with_graph: bool) -> None:
    z = logits(ROWS, CLASSES, torch.float32, 0)
    tangent = logits(ROWS, CLASSES, torch.float32, 1)
    _, expected = torch.func.jvp(LOSSES[name], (z.double(),), (tangent.double(),))
    with dispatch.use(BACKEND), forward_ad.dual_level():
        dual = forward_ad.make_dual(z.clone().requires_grad_(with_graph), tangent)
        found = forward_ad.unpack_dual(LOSSES[name](dual)).tangent
    torch.testing.assert_close(found.double().detach(), expected, rtol=1e-4, atol=1e-5)
