"""Exact feedback through low-rank adapters equals double backward, in float64; the frozen weights do not move."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import LossPass, TangentPass
from fastmpl.methods.feedback import exact_credit
from fastmpl.models import build
from fastmpl.models.adapters import add_adapters
from fastmpl.models.attention import use_math_attention
from tests.models.test_adapters import move_adapters
from tests.step.worlds import optimiser

CLASSES, RATE = 3, 0.25  # a rate that float32 holds exactly
KEY = torch.zeros((), dtype=torch.int64)


def adapted(model: str, side: int) -> nn.Module:
    shape = (3, side, side)
    module = build(model, classes=CLASSES, image_shape=shape, dropout=0.0, norm="group", width=8, depth=3, seed=0)
    add_adapters(module, 2, seed=1)
    module = module.double()
    move_adapters(module)
    return module


def draw(seed: int, side: int) -> Tensor:
    return torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of_labels(logits: Tensor, q: Tensor) -> Tensor:
    return -(q * torch.log_softmax(logits, -1)).sum(-1).mean()


@pytest.mark.parametrize(("model", "side"), [("perceptron", 6), ("conv", 8), ("timm:test_vit", 32)])
def test_the_credit_is_that_of_double_backward(model: str, side: int) -> None:
    images, labelled, targets = draw(1, side), draw(2, side), torch.arange(5) % CLASSES
    q = torch.softmax(torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64), -1)
    q.requires_grad_()

    module = adapted(model, side)
    moving = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert any("adapter" in name for name in moving) and len(moving) < len(list(module.parameters()))
    with use_math_attention(module):  # fused attention has no second derivative
        gradients = torch.autograd.grad(loss_of_labels(module(images), q), list(moving.values()), create_graph=True)
        after = {name: p - RATE * g for (name, p), g in zip(moving.items(), gradients, strict=True)}
        (expected,) = torch.autograd.grad(F.cross_entropy(functional_call(module, after, (labelled,)), targets), q)

    section = optimiser("sgd", lr=RATE, momentum=0.0, weight_decay=0.0)
    learner = PlainLearner(adapted(model, side), section, steps=10)
    logits = learner.forward(images, KEY)
    learner.accumulate(loss_of_labels(logits, q.detach()))
    update = learner.apply(torch.tensor(0), keep=True)
    gradient = learner.gradient([LossPass(labelled, lambda rows: F.cross_entropy(rows, targets), KEY)])
    (tangent,) = learner.tangents(update, [TangentPass(images, logits.detach(), KEY)], gradient)
    found = exact_credit(logits.detach(), tangent, label_smoothing=0.0)
    # up to a constant a row, which no change of a distribution sees
    found, expected = (rows - rows.mean(-1, keepdim=True) for rows in (found, expected))
    assert float(expected.norm()) > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
