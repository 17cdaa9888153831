"""Frozen first layers run once for the images of a step, and no number changes by it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmpl.analysis.accounting import count_arithmetic
from fastmpl.data.batch import Batch
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.shared_prefix import SharedPrefix
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.models import build
from fastmpl.step.context import make_context
from fastmpl.step.mpl_step import MplStep
from fastmpl.step.order import split
from tests.step.worlds import optimiser

CLASSES, SIDE, LABELLED, UNLABELLED = 3, 32, 4, 6


def draw(seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def pictures(n: int) -> Tensor:
        return torch.randn(n, 3, SIDE, SIDE, generator=g)

    labels, index = torch.randint(CLASSES, (LABELLED,), generator=g), torch.arange(LABELLED)
    views = pictures(UNLABELLED), pictures(UNLABELLED)
    return Batch(pictures(LABELLED), labels, index, *views, torch.arange(UNLABELLED))


class Pair:
    """A student with a frozen prefix and a small teacher."""

    def __init__(self, model: str, *, shares: bool, kind: Any = "exact", dropout: float = 0.0, **options: Any) -> None:
        settings: dict[str, Any] = dict(image_shape=(3, SIDE, SIDE), norm="batch", width=16, depth=3)
        student, teacher = (
            build(name, classes=CLASSES, dropout=dropout, seed=seed, **settings)
            for name, seed in ((model, 1), ("conv", 2))
        )
        section = optimiser("adamw", lr=1e-3, freeze=2)
        self.student = PlainLearner(student, section, steps=10, average=0.9, shares_prefix=shares, **options)
        self.teacher = PlainLearner(teacher, optimiser(), steps=10)
        targets = "soft" if kind == "exact" else "sampled"
        self.method = MetaPseudoLabels(unlabelled=UNLABELLED, targets=targets, feedback=Feedback(kind))  # type: ignore[arg-type]
        self.baseline = torch.zeros(())

    def take(self, step: int, batch: Batch, parts: int = 1) -> None:
        context = make_context(torch.tensor(7), torch.tensor(step), torch.tensor(0.5), parts=parts)
        order = split(self.method, deferred=parts > 1)
        MplStep(self.method, order, self.teacher, self.student)(batch.parts(parts), context, self.baseline)

    def state(self) -> dict[str, Tensor]:
        own = {f"student/{name}": value for name, value in self.student.state().items()}
        return own | {f"teacher/{name}": value for name, value in self.teacher.state().items()}


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "conv": (dict(model="conv"), 1),
    "conv with dropout": (dict(model="conv", dropout=0.3), 1),
    "scalar": (dict(model="conv", kind="scalar"), 1),
    "difference": (dict(model="conv", tangent="difference"), 1),
    "micro-batches": (dict(model="conv"), 2),
    "vit": (dict(model="timm:test_vit"), 1),
    "vit, its tangent in parts": (dict(model="timm:test_vit", tangent_images=4), 1),
    "efficientnet": (dict(model="timm:test_efficientnet"), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_sharing_changes_no_number(case: str) -> None:
    """To the rounding of attention, whose fused form gave what the tangent would compute by the math form."""
    options, parts = CASES[case]
    alone, shared = (Pair(shares=shares, **options) for shares in (False, True))
    for step in range(3):
        for pair in (alone, shared):
            pair.take(step, draw(step), parts)
    found = shared.state()
    for name, value in alone.state().items():
        if "vit" in case:
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", ["conv", "scalar", "vit, its tangent in parts", "efficientnet"])
def test_a_step_saves_the_second_pass_of_the_prefix(case: str) -> None:
    """Of the unlabelled images for the tangent; of the labelled ones for the second validation loss."""
    options, _ = CASES[case]
    counts = []
    for shares in (False, True):
        pair = Pair(shares=shares, **options)
        pair.take(0, draw(0))
        batch = draw(1)
        counts.append(count_arithmetic(lambda pair=pair, batch=batch: pair.take(1, batch)))
    images = (draw(2).labelled if case == "scalar" else draw(2).strong).clone()
    prefix = count_arithmetic(lambda: run_frozen(pair.student, images))
    assert prefix > 0
    assert counts[0] - counts[1] == prefix


def run_frozen(student: PlainLearner, images: Tensor) -> None:
    """The layers before the first that learns, alone."""

    class Reached(Exception): ...

    def stop(module: nn.Module, inputs: Any) -> None:
        raise Reached

    hooks = [module.register_forward_pre_hook(stop) for module in student.prefix.ends]
    try:
        student.module(images)
    except Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def test_what_was_kept_goes_with_the_step() -> None:
    pair = Pair("conv", shares=True)
    for step in range(3):
        pair.take(step, draw(step))
        assert pair.student.prefix.entries == []


class WritesInto(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).mul_(2))
        return y


def test_a_result_that_was_written_into_and_other_images_are_computed_again() -> None:
    network = WritesInto()
    network.first.requires_grad_(False).eval()
    prefix, x = SharedPrefix(network, [network.first]), torch.randn(4, 3)
    expected = network(x)
    for _ in range(2):
        with prefix.share(x):
            assert torch.equal(network(x), expected)
    x.add_(1)
    with prefix.share(x):
        found = network(x)
    assert torch.equal(found, network(x)) and not torch.equal(found, expected)


def test_nothing_behind_a_layer_that_learns_is_kept() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    network[1].requires_grad_(False).eval()
    prefix, x = SharedPrefix(network, [network[1]]), torch.randn(4, 3)
    with prefix.share(x):
        network(x)
    assert prefix.entries[0].results == {}
