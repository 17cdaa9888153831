"""Steps that are equal: by other orders of the passes, with recomputed blocks, in micro-batches, and without feedback."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.pseudo_label import PseudoLabel
from fastmpl.methods.uda import Consistency, Uda
from fastmpl.models.norms import use_batch_statistics
from fastmpl.step.order import Order, joint, split
from fastmpl.step.single_network_step import SingleNetworkStep
from tests.step.worlds import CLASSES, World, optimiser, relative


def weights(world: World) -> Tensor:
    """Every tensor of both networks and optimisers, flat."""
    return torch.cat([v.double().reshape(-1) for s in (world.teacher, world.student) for v in s.state().values()])


def after(world: World, steps: int = 5) -> Tensor:
    for step in range(steps):
        world.take(step)
    return weights(world)


LEARNING = dict(student_config=optimiser("nesterov"), teacher_config=optimiser("nesterov", lr=0.1))


CONSISTENCY = Consistency(temperature=0.7, threshold=0.3)


@pytest.mark.parametrize("kind", ["exact", "scalar"])
@pytest.mark.parametrize("view", ["strong", "weak"])
def test_joint_equals_split_without_batch_norm(kind: Any, view: Any) -> None:
    method = MetaPseudoLabels(
        unlabelled=4,
        targets="soft" if kind == "exact" else "sampled",
        label_view=view,
        feedback=Feedback(kind),
        consistency=CONSISTENCY,
    )
    a, b = World(method, **LEARNING), World(method, **LEARNING, order=joint(method))
    assert relative(after(b), after(a)) < 1e-12


def test_joint_differs_from_split_with_batch_norm() -> None:
    method = MetaPseudoLabels(unlabelled=4, consistency=CONSISTENCY)
    a, b = World(method, **LEARNING, norm=True), World(method, **LEARNING, norm=True, order=joint(method))
    assert relative(after(b), after(a)) > 1e-6


@pytest.mark.parametrize("order", [split, joint])
def test_a_deferred_teacher_graph_equals_a_kept_one(order: Callable[..., Order]) -> None:
    method = MetaPseudoLabels(unlabelled=4, consistency=CONSISTENCY)
    settings: dict[str, Any] = dict(**LEARNING, norm=True, dropout=0.3)
    kept = World(method, **settings, order=order(method))
    deferred = World(method, **settings, order=order(method, deferred=True))
    assert relative(after(deferred), after(kept)) < 1e-12


@pytest.mark.parametrize("deferred", [False, True])
def test_recomputed_blocks_equal_kept_ones(deferred: bool) -> None:
    method = MetaPseudoLabels(unlabelled=4, consistency=CONSISTENCY)
    settings: dict[str, Any] = dict(**LEARNING, norm=True, dropout=0.3, order=split(method, deferred=deferred))
    kept, recomputed = World(method, **settings), World(method, **settings, recompute=True)
    assert relative(after(recomputed), after(kept)) < 1e-12


@pytest.mark.parametrize("order", [split, joint])
@pytest.mark.parametrize("deferred", [False, True])
def test_running_statistics_are_updated_once_per_network_and_step(order: Callable[..., Order], deferred: bool) -> None:
    method = MetaPseudoLabels(unlabelled=4, consistency=CONSISTENCY)
    world = World(method, **LEARNING, norm=True, order=order(method, deferred=deferred))
    after(world, steps=3)
    for learner in (world.teacher, world.student):
        assert learner.module[1].num_batches_tracked == 3


@pytest.mark.parametrize("kind", ["exact", "scalar", "per_example"])
@pytest.mark.parametrize("images", ["labelled", "trusted"])
def test_micro_batches_equal_one_batch_without_batch_norm(kind: Any, images: Any) -> None:
    method = MetaPseudoLabels(
        unlabelled=4,
        targets="soft" if kind == "exact" else "sampled",
        feedback=Feedback(kind, images=images),
        consistency=CONSISTENCY,
    )
    settings: dict[str, Any] = dict(**LEARNING, trusted=4)
    whole = World(method, **settings)
    parts = World(method, **settings, parts=2, order=split(method, deferred=True))
    assert relative(after(parts), after(whole)) < 1e-12


def test_without_feedback_the_student_is_that_of_a_uda_teacher() -> None:
    method = MetaPseudoLabels(unlabelled=4, feedback=Feedback("off"), consistency=CONSISTENCY)
    world = World(method, **LEARNING, norm=True)
    alone = World(method, **LEARNING, norm=True)
    uda, student = Uda(CONSISTENCY), PseudoLabel("soft", labeller="fixed", label_view="strong", supervised_weight=0)
    for step in range(5):
        world.take(step)
        batch, context = alone.batch(step), alone.context(step)
        with torch.no_grad(), use_batch_statistics(alone.teacher.module):
            logits = alone.teacher.module(torch.cat([batch.labelled, batch.strong]))[len(batch.labelled) :]
        SingleNetworkStep(student, alone.student, lambda images, rows=logits: rows)([batch], context)
        SingleNetworkStep(uda, alone.teacher)([batch], context)
    assert relative(weights(alone), weights(world)) < 1e-12


def test_the_student_never_sees_a_true_label() -> None:
    """Without feedback, other labels on the same images change nothing in the student's first step."""
    method = MetaPseudoLabels(unlabelled=4, feedback=Feedback("off"))
    a, b = World(method, **LEARNING), World(method, **LEARNING)
    batch = b.batch(0)
    b.batch = lambda step: batch._replace(targets=(batch.targets + 1) % CLASSES)  # type: ignore[method-assign]
    a.take(0)
    b.take(0)
    assert all(torch.equal(a.student.state()[name], value) for name, value in b.student.state().items())
    assert relative(weights(b), weights(a)) > 1e-6  # while the teacher does see them
