"""The scalar feedback's moving average outlives a step that teaches nothing: skipped, or with a loss that is not finite."""

import math

import pytest
import torch

from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.step.credit import CreditPhase
from fastmpl.step.eager import EagerStep, Ramp
from tests.step.worlds import World, optimiser

SCALAR = Feedback("scalar", baseline=0.9)


def world() -> World:
    world = World(MetaPseudoLabels(unlabelled=4, targets="sampled", feedback=SCALAR), optimiser("nesterov"))
    for step in range(3):
        world.take(step)
    assert world.baseline != 0
    return world


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_validation_loss_that_is_not_finite_leaves_the_average_and_teaches_nothing(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = world()
    before = ours.baseline.clone()
    loss = torch.tensor(value, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(CreditPhase, "_validation_loss", lambda *_: loss)
        metrics = ours.take(3)
    assert torch.equal(ours.baseline, before)
    assert metrics.feedback == metrics.feedback_size == metrics.feedback_loss == 0
    assert metrics.skipped == 0  # the teacher still learns from its other losses
    ours.take(4)
    assert ours.baseline.isfinite()
    assert not torch.equal(ours.baseline, before)


def test_a_skipped_update_leaves_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = world()
    before = ours.baseline.clone()
    poisoned = ours.batch(3)
    monkeypatch.setattr(ours, "batch", lambda step: poisoned._replace(strong=poisoned.strong * math.nan))
    assert ours.take(3).skipped >= 1
    assert torch.equal(ours.baseline, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_average_that_an_earlier_version_lost_starts_again_at_zero(value: float) -> None:
    ours = world()
    step = EagerStep(lambda *_: ours.take(0), seed=0, ramp=Ramp(), device=torch.device("cpu"))
    step.load({"step": torch.tensor(7), "baseline": torch.tensor(value)})
    assert (int(step.step), float(step.baseline)) == (7, 0.0)
