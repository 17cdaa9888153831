"""The fused optimiser is torch's with the average beside it, skips what is not finite, and clips by the whole norm."""

import pytest
import torch

from fastmpl.learners.plain import PlainLearner
from tests.step.worlds import FEATURES, network, optimiser


def trained(name: str, *, steps: int = 6, poison: int | None = None, clip: float = 0.0) -> PlainLearner:
    learner = PlainLearner(network(1, norm=True), optimiser(name, clip=clip), steps=100, average=0.9)
    images = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in range(steps):
        loss = learner.forward(images, torch.tensor(0)).square().mean()
        learner.accumulate(loss * (float("nan") if step == poison else 1.0))
        learner.apply(torch.tensor(step))
    return learner


@pytest.mark.parametrize("clip", [0.0, 0.01])
@pytest.mark.parametrize("poison", [None, 3])
def test_the_fused_optimiser_is_nesterov_and_its_average(clip: float, poison: int | None) -> None:
    ours, theirs = (trained(name, clip=clip, poison=poison).state() for name in ("fastmpl:sgd_ema", "nesterov"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw", "fastmpl:sgd_ema"])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str) -> None:
    before, after = trained(name, steps=3).state(), trained(name, steps=4, poison=3).state()
    for key, value in before.items():
        if "running" not in key and "batches" not in key:
            torch.testing.assert_close(after[key], value, atol=0, rtol=0)
