"""Running statistics move once a pass, as torch moves them, and only by a step that is taken."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fastmpl.learners.plain import PlainLearner
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.models import build
from fastmpl.step.order import split
from tests.step.worlds import World, optimiser

KEY = torch.zeros((), dtype=torch.int64)


def learner() -> PlainLearner:
    module = build("conv", classes=3, image_shape=(3, 8, 8), dropout=0.0, norm="batch", width=8, depth=1, seed=0)
    return PlainLearner(module, optimiser("nesterov"), steps=10)


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers() if "running" in name or "tracked" in name}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return len(a) > 0 and all(torch.equal(a[name], b[name]) for name in a)


def test_a_taken_step_moves_them_as_torch_does_and_counts_every_micro_batch() -> None:
    torch.manual_seed(0)
    ours = learner()
    plain = copy.deepcopy(ours.module)
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    for images in batches:
        ours.accumulate(ours.forward(images, KEY).square().mean())
        plain(images)
    ours.apply(KEY)
    assert same(statistics(ours.module), statistics(plain))
    assert {int(v) for name, v in statistics(ours.module).items() if "tracked" in name} == {2}


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_skipped_step_leaves_them_as_they_were_before_all_its_passes(poison: float) -> None:
    torch.manual_seed(0)
    ours = learner()
    good = torch.randn(4, 3, 8, 8)
    ours.accumulate(ours.forward(good, KEY).square().mean())
    ours.apply(KEY)
    before = statistics(ours.module)
    for images in (good, good.clone().fill_(poison)):
        ours.accumulate(ours.forward(images, KEY).square().mean())
    assert not same(statistics(ours.module), before)
    assert ours.apply(KEY).applied == 0
    assert same(statistics(ours.module), before)
    ours.accumulate(ours.forward(good, KEY).square().mean())
    assert ours.apply(KEY).applied == 1
    assert not same(statistics(ours.module), before)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_teacher_whose_step_is_skipped_keeps_its_statistics_while_the_student_moves_on(deferred: bool) -> None:
    method = MetaPseudoLabels(unlabelled=4, targets="sampled", feedback=Feedback("scalar"), supervised_weight=math.inf)
    world = World(method, norm=True, order=split(method, deferred=deferred))
    teacher, student = statistics(world.teacher.module), statistics(world.student.module)
    assert world.take(0).skipped == 1
    assert same(statistics(world.teacher.module), teacher)
    assert not same(statistics(world.student.module), student)
