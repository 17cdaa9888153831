"""Exact feedback on networks that are not perceptrons: against finite differences in float64, and float32 against float64.

A ViT, a ConvNeXt and a RegNet of timm, made small. In float64 the credit is the derivative of V(theta') by a label's
probability, by central differences of whole steps; float32, with channels last and contiguous, is held to float64.
"""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import LossPass, TangentPass
from fastmpl.methods.feedback import exact_credit
from fastmpl.models.layout import channels_last
from fastmpl.models.zoo import _fit
from tests.step.worlds import optimiser

CLASSES, SHAPE = 3, (3, 32, 32)
KEY = torch.zeros((), dtype=torch.int64)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=CLASSES
    ),
    "convnext": lambda: timm.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=CLASSES
    ),
    "regnet": lambda: timm.create_model("regnetx_002", num_classes=CLASSES),
}


def draw(seed: int, rows: int) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student(name: str, dtype: torch.dtype, *, last: bool = False) -> PlainLearner:
    torch.manual_seed(0)
    module = _fit(NETWORKS[name](), name, SHAPE, 0.0, "batch").to(dtype)
    return PlainLearner(channels_last(module) if last else module, optimiser("sgd", lr=0.05), steps=10)


def take(learner: PlainLearner, q: Tensor, *, last: bool = False) -> tuple[Tensor, Tensor]:
    """V(theta') of a step on the labels q, and its derivative by them."""
    dtype = learner.parameters[next(iter(learner.parameters))].dtype
    layout = torch.channels_last if last else torch.contiguous_format
    images, labelled = (draw(seed, 4).to(dtype).contiguous(memory_format=layout) for seed in (1, 2))
    targets = torch.tensor([0, 1, 2, 0])
    logits = learner.forward(images, KEY)
    learner.accumulate(-(q.to(dtype) * torch.log_softmax(logits, -1)).sum(-1).mean())
    update = learner.apply(torch.tensor(0), keep=True)

    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(rows, targets)

    gradient = learner.gradient([LossPass(labelled, loss, KEY)])
    (tangent,) = learner.tangents(update, [TangentPass(images, logits.detach(), KEY)], gradient)
    credit = exact_credit(logits.detach(), tangent, label_smoothing=0.0)
    return loss(learner.observe(labelled, KEY, precise=True)), credit


def labels() -> Tensor:
    return torch.softmax(torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64), -1)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_credit_is_the_derivative_of_the_loss_after_the_step(name: str) -> None:
    """Along a change of labels that keeps each row a distribution; per-example credit is a column of the same rows."""
    _, credit = take(student(name, torch.float64), labels())
    direction = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    direction -= direction.mean(-1, keepdim=True)
    step = 1e-5
    after = [take(student(name, torch.float64), labels() + sign * step * direction)[0] for sign in (1, -1)]
    expected = (after[0] - after[1]) / (2 * step)
    assert credit.norm() > 1e-4
    torch.testing.assert_close((credit * direction).sum(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_follows_float64(name: str, last: bool) -> None:
    loss, expected = take(student(name, torch.float64), labels())
    found_loss, found = take(student(name, torch.float32, last=last), labels(), last=last)
    torch.testing.assert_close(found_loss.double(), loss, rtol=1e-4, atol=0)
    assert largest_difference(found.double(), expected) < 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_derivative_is_right_or_raises(name: str) -> None:
    """<u, H v> by double backward, where no operation refuses it, is the derivative of the gradient along v."""
    module = student(name, torch.float64).module
    parameters = [p for p in module.parameters() if p.requires_grad]
    images, targets = draw(1, 4), torch.tensor([0, 1, 2, 0])
    g = torch.Generator().manual_seed(5)
    direction = [1e-3 * torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters]
    with torch.no_grad():  # away from the start, where norms that begin at zero put sums exactly on the kink of a ReLU
        for p in parameters:
            p.add_(0.02 * torch.randn(p.shape, generator=g, dtype=p.dtype))

    def gradient(*, create_graph: bool) -> tuple[Any, ...]:
        return torch.autograd.grad(F.cross_entropy(module(images), targets), parameters, create_graph=create_graph)

    def along(gradients: tuple[Any, ...]) -> Tensor:
        return torch.stack([(g * v).sum() for g, v in zip(gradients, direction, strict=True)]).sum()

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p.add_(by * v)
        return along(gradient(create_graph=False))

    try:
        products = torch.autograd.grad(along(gradient(create_graph=True)), parameters)
    except RuntimeError as error:
        if "derivative" not in str(error) and "differentiable" not in str(error):
            raise
        return
    found = along(products)
    step = 1e-5
    expected = (moved(step) - moved(-2 * step)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
