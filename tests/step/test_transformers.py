"""Exact feedback on transformers, in float64: fused attention in every pass but the tangent, which runs in parts.

The reference is double backward through the student's update, with the math form of attention in all passes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from fastmpl.learners import plain
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.protocol import LossPass, TangentPass
from fastmpl.methods.feedback import exact_credit
from fastmpl.models import KeyedDropPath, set_draw
from fastmpl.models.attention import set_attention, use_math_attention
from fastmpl.models.zoo import _fit
from tests.step.identities import updated
from tests.step.worlds import optimiser, relative

CLASSES, IMAGES, SHAPE = 3, 5, (3, 32, 32)
KEY = torch.tensor(17)
VIT = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=CLASSES, global_pool="avg")
SWIN = dict(img_size=32, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2), num_classes=CLASSES)
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vit": lambda **changes: timm.create_model("vit_tiny_patch16_224", **(VIT | changes)),
    "swin": lambda **changes: timm.create_model("swin_tiny_patch4_window7_224", **(SWIN | changes)),
}
RANDOM = dict(drop_path_rate=0.3, proj_drop_rate=0.2)


def learner(name: str, method: str = "sgd", *, at_once: int = 0, **changes: Any) -> PlainLearner:
    torch.manual_seed(0)
    module = _fit(NETWORKS[name](**changes), name, SHAPE, 0.0, "batch").double()
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():  # away from biases of zero
        for p in module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return PlainLearner(module, optimiser(method, lr=0.05), steps=10, tangent_images=at_once)


def draw(seed: int) -> Tensor:
    return torch.randn(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels() -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.softmax(torch.randn(IMAGES, CLASSES, generator=g, dtype=torch.float64), -1)


TARGETS = torch.tensor([0, 1, 2, 0, 1])


def validate(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, TARGETS)


def learn(student: PlainLearner, q: Tensor, step: int = 0) -> tuple[Any, Tensor]:
    logits = student.forward(draw(1), KEY)
    student.accumulate(-(q * torch.log_softmax(logits, -1)).sum(-1).mean())
    return student.apply(torch.tensor(step), keep=True), logits.detach()


def credit(student: PlainLearner, step: int = 0) -> Tensor:
    """r of a step, [N, K]."""
    update, logits = learn(student, labels(), step)
    gradient = student.gradient([LossPass(draw(2), validate, KEY)])
    (tangent,) = student.tangents(update, [TangentPass(draw(1), logits, KEY)], gradient)
    return exact_credit(logits, tangent, label_smoothing=0.0)


def double_backward(student: PlainLearner, config: Any) -> Tensor:
    """dV(theta'(q)) / dq, written out from the update's definition."""
    module = student.module
    q = labels().requires_grad_()
    theta = {name: p.detach().clone().requires_grad_() for name, p in student.parameters.items()}
    set_draw(module, KEY)
    with use_math_attention(module):
        log_p = torch.log_softmax(functional_call(module, theta, (draw(1),)), -1)
        loss = -(q * log_p).sum(-1).mean()
        g = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
        v = validate(functional_call(module, updated(student, theta, g, config), (draw(2),)))
    return torch.autograd.grad(v, q)[0]


class Attention(TorchDispatchMode):
    """Counts fused attention, forward passes alone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.fused += "scaled_dot_product" in name and "backward" not in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("random", [{}, RANDOM], ids=["", "random"])
@pytest.mark.parametrize("method", ["nesterov", "adamw"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_feedback_is_double_backward(name: str, method: str, random: dict[str, float]) -> None:
    student = learner(name, method, at_once=2, **random)
    for step in range(2):  # so that the optimiser has state
        learn(student, labels(), step)
    expected = double_backward(student, optimiser(method, lr=0.05))
    found = credit(student, 2)
    assert relative(found, expected) < 1e-10


def test_attention_is_fused_in_every_pass_but_the_tangent() -> None:
    student = learner("vit", at_once=2)
    layers = sum(hasattr(layer, "fused_attn") for layer in student.module.modules())
    with Attention() as learning:
        update, logits = learn(student, labels())
    with Attention() as validating:
        gradient = student.gradient([LossPass(draw(2), validate, KEY)])
    with Attention() as observing:
        student.observe(draw(2), KEY)
    with Attention() as pushing:
        student.tangents(update, [TangentPass(draw(1), logits, KEY)], gradient)
    assert (learning.fused, validating.fused, observing.fused, pushing.fused) == (layers, layers, layers, 0)
    assert layers == 2


def test_the_math_form_has_no_fused_operator() -> None:
    student = learner("vit")
    expected = student.observe(draw(1), KEY)
    set_attention(student.module, "math")
    with Attention() as seen:
        found = student.observe(draw(1), KEY)
        learn(student, labels())
    assert seen.fused == 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_fused_attention_repeats_bit_for_bit_on_a_cpu() -> None:
    first, second = (learner("vit") for _ in range(2))
    for student in (first, second):
        credit(student)
    assert all(torch.equal(p, second.parameters[name]) for name, p in first.parameters.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_that_drops_scores_stays_keyed(name: str) -> None:
    student = learner(name, attn_drop_rate=0.3)
    with Attention() as seen:
        first, second = (student.observe(draw(1), KEY) for _ in range(2))
        other = student.observe(draw(1), KEY + 1)
    assert seen.fused == 0
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("random", [{}, RANDOM], ids=["", "random"])
@pytest.mark.parametrize("at_once", [1, 2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_tangent_in_parts_is_that_of_all_images(name: str, at_once: int, random: dict[str, float]) -> None:
    whole, parts = (credit(learner(name, at_once=most, **random)) for most in (0, at_once))
    assert whole.norm() > 1e-4
    assert relative(parts, whole) < 1e-12


def test_parts_see_other_draws_where_they_are_not_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity above holds by the numbers of the images alone."""

    @contextmanager
    def nothing(module: nn.Module, first: int, images: int) -> Iterator[None]:
        yield

    whole = credit(learner("swin", **RANDOM))
    monkeypatch.setattr("fastmpl.learners.tangent_parts.number_images_from", nothing)
    assert relative(credit(learner("swin", at_once=2, **RANDOM)), whole) > 1e-3


def test_the_identity_fails_under_another_form_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Double backward differs from a tangent whose drop path is another."""
    student = learner("vit", **RANDOM)
    assert any(isinstance(layer, KeyedDropPath) for layer in student.module.modules())
    expected = double_backward(student, optimiser("sgd", lr=0.05))
    honest = plain.write_draws
    calls: list[int] = []

    def other(draws: list[Tensor], key: Tensor) -> None:
        calls.append(0)
        honest(draws, key + 1 if len(calls) == 3 else key)  # forward, gradient, tangent

    monkeypatch.setattr(plain, "write_draws", other)
    assert relative(credit(student), expected) > 1e-3
