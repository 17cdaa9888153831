"""What a step keeps for its credit is gone when the teacher's graph is built."""

import weakref
from typing import Any

import torch
from torch import Tensor

from fastmpl.learners.protocol import Update
from fastmpl.methods.mpl import MetaPseudoLabels
from fastmpl.step.order import split
from tests.step.worlds import World


def test_the_old_parameters_and_gradients_are_freed_before_the_teachers_graph(monkeypatch: Any) -> None:
    method = MetaPseudoLabels(unlabelled=4)
    world = World(method, order=split(method, deferred=True))
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    apply, forward = world.student.apply, world.teacher.forward

    def remember(step: Tensor, *, keep: bool = False) -> Update:
        update = apply(step, keep=keep)
        assert update.old is not None and update.gradients is not None
        kept.extend(weakref.ref(value) for value in (*update.old.values(), *update.gradients.values()))
        return update

    def look(images: Tensor, draw: Tensor, **options: bool) -> Tensor:
        alive.append(sum(reference() is not None for reference in kept))
        return forward(images, draw, **options)

    monkeypatch.setattr(world.student, "apply", remember)
    monkeypatch.setattr(world.teacher, "forward", look)
    metrics = world.take(0)
    assert alive == [0]
    assert len(kept) == 2 * len(world.student.parameters)
    assert torch.isfinite(metrics.feedback)
