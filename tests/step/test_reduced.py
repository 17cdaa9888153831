"""ReducedMPL: what its teacher sees, where it starts, and that its gradient is the true one."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fastmpl.data.batch import Batch
from fastmpl.learners.plain import PlainLearner
from fastmpl.methods.distillation import distillation
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.supervised import Supervised
from fastmpl.models.reduced_teacher import FLOOR, ReducedTeacher, StoredTeacher
from fastmpl.step.single_network_step import SingleNetworkStep
from tests.step.identities import updated
from tests.step.worlds import CLASSES, World, batch, optimiser, relative

LEARNING = optimiser("adamw", lr=0.01, weight_decay=0.0)


def rows(n: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(n, CLASSES, generator=g, dtype=torch.float64), -1)


@dataclass
class Reduced(World):
    """A world whose teacher is a small perceptron over stored rows."""

    moved: bool = True  # whether its last layer has left zero
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        module = ReducedTeacher(CLASSES, width=6, depth=3, seed=5).double()
        if self.moved:
            torch.manual_seed(3)
            torch.nn.init.normal_(module.correction[-1].weight, std=0.3)
        self.teacher = PlainLearner(module, self.teacher_config, steps=1000)
        module.register_forward_pre_hook(lambda _, given: self.seen.append(tuple(given[0].shape)))

    def batch(self, step: int) -> Batch:
        images = batch(10 + step, unlabelled=self.method.unlabelled, trusted=self.trusted)
        return images._replace(
            stored_labelled=rows(len(images.labelled), 100 + step),
            stored_unlabelled=rows(len(images.strong), 200 + step),
        )


def reference(world: Reduced, step: int) -> Tensor:
    """d V(theta'(psi)) / d psi by differentiating through the student's update, from the definitions."""
    batch, teacher, student = world.batch(step), world.teacher, world.student
    assert batch.stored_unlabelled is not None
    psi = {name: p.detach().clone().requires_grad_() for name, p in teacher.parameters.items()}
    q = torch.softmax(functional_call(teacher.module, psi, (batch.stored_unlabelled,)), -1)
    theta = {name: p.detach().clone().requires_grad_() for name, p in student.parameters.items()}
    z = functional_call(student.module, theta, (batch.strong,))
    loss = -(q * F.log_softmax(z, -1)).sum(-1).mean()
    g = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
    new = updated(student, theta, g, world.student_config)
    inputs, targets = (
        (batch.labelled, batch.targets) if batch.trusted is None else (batch.trusted, batch.trusted_targets)
    )
    v = F.cross_entropy(functional_call(student.module, new, (inputs,)), targets)
    return torch.cat([d.reshape(-1) for d in torch.autograd.grad(v, list(psi.values()))])


@pytest.mark.parametrize("images", ["labelled", "trusted"])
@pytest.mark.parametrize("student", [optimiser("nesterov"), optimiser("adamw")], ids=["nesterov", "adamw"])
def test_exact_feedback_of_a_reduced_teacher_is_double_backward(student: Any, images: Any) -> None:
    method = MetaPseudoLabels(unlabelled=4, supervised_weight=0.0, feedback=Feedback("exact", images=images))
    world = Reduced(method, student, trusted=5 if images == "trusted" else 0)
    for step in range(3):
        world.take(step)
    expected = reference(world, 3)
    assert relative(world.teacher_gradient(3), expected) < 1e-10
    flipped = replace(method, feedback=replace(method.feedback, control="flipped"))
    world.method = flipped
    assert relative(world.teacher_gradient(3), expected) > 1.9


def test_it_starts_as_the_identity() -> None:
    q = rows(50, 0).sqrt()
    q = q / q.sum(-1, keepdim=True)
    torch.testing.assert_close(torch.softmax(ReducedTeacher(CLASSES, 6, 3, seed=0).double()(q), -1), q)


def test_a_probability_of_zero_is_floored_at_the_smallest_normal_half() -> None:
    assert torch.tensor(FLOOR).half() == torch.finfo(torch.float16).smallest_normal
    assert StoredTeacher()(torch.tensor([[1.0, 0.0]])).tolist() == [[0.0, pytest.approx(-9.704, abs=1e-3)]]


def taken(world: Reduced, steps: int = 20) -> Tensor:
    for step in range(steps):
        world.take(step)
    return torch.cat([p.detach().reshape(-1) for p in world.student.parameters.values()])


@pytest.mark.parametrize("stopped", [dict(lr=0.0), dict(wait=20)], ids=["rate 0", "waiting"])
def test_frozen_it_is_distillation(stopped: dict[str, Any]) -> None:
    method = MetaPseudoLabels(unlabelled=4)
    world = Reduced(method, optimiser("nesterov"), optimiser("adamw", **stopped), moved=False)
    other = Reduced(method, optimiser("nesterov"), moved=False)
    alone = distillation(label_view="strong", temperature=1.0)
    for step in range(20):
        images = other.batch(step)
        assert images.stored_unlabelled is not None
        SingleNetworkStep(alone, other.student, StoredTeacher())([images], other.context(step))
    expected = torch.cat([p.detach().reshape(-1) for p in other.student.parameters.values()])
    assert relative(taken(world), expected) < 1e-6
    learning = Reduced(method, optimiser("nesterov"), LEARNING, moved=False)
    assert relative(taken(learning), expected) > 1e-3


def test_without_feedback_it_is_a_calibrator_of_the_labelled_images_rows() -> None:
    world = Reduced(MetaPseudoLabels(unlabelled=4, feedback=Feedback("off")), optimiser(), LEARNING)
    calibrator = PlainLearner(ReducedTeacher(CLASSES, 6, 3, seed=5).double(), LEARNING, steps=1000)
    calibrator.load({name: value.clone() for name, value in world.teacher.state().items()})
    for step in range(20):
        world.take(step)
        shown = world.batch(step).for_teacher()
        SingleNetworkStep(Supervised(), calibrator)([shown], world.context(step))
    for name, value in calibrator.state().items():
        torch.testing.assert_close(world.teacher.state()[name], value, rtol=1e-10, atol=1e-12)


def test_without_either_loss_it_does_not_move() -> None:
    world = Reduced(
        MetaPseudoLabels(unlabelled=4, supervised_weight=0.0, feedback=Feedback("off")), optimiser(), LEARNING
    )
    before = {name: p.detach().clone() for name, p in world.teacher.parameters.items()}
    taken(world, 3)
    assert all(torch.equal(before[name], p) for name, p in world.teacher.parameters.items())


KINDS = [("soft", "exact"), ("sampled", "per_example"), ("sampled", "scalar"), ("argmax", "scalar")]


@pytest.mark.parametrize(("targets", "kind"), KINDS)
def test_the_teacher_sees_stored_rows_alone_and_learns_from_every_kind_of_feedback(targets: Any, kind: Any) -> None:
    feedback = Feedback(kind, images="trusted")
    method = MetaPseudoLabels(unlabelled=4, targets=targets, supervised_weight=0.0, feedback=feedback)
    world = Reduced(method, optimiser(), LEARNING, trusted=5)
    before = {name: p.detach().clone() for name, p in world.teacher.parameters.items()}
    taken(world, 2)
    assert set(world.seen) == {(6 + 4, CLASSES)}
    assert any(not torch.equal(before[name], p) for name, p in world.teacher.parameters.items())
