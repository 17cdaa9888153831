"""The identities that prove the teacher's gradient, in float64; `test_identities_broken` has the faults that they find."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmpl.methods import feedback
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl_kernels.teacher_objective.reference import PerExampleFeedback, credit_loss
from tests.learners import fake_apex
from tests.step.identities import OPTIMISERS, check_sampled_labels, check_soft_labels, check_zero, exact, sampled_world
from tests.step.worlds import CLASSES, World, optimiser, relative

# --- 1. sampled labels: the scalar estimator, summed over every assignment ------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scalar_feedback_summed_over_every_assignment_is_the_gradient_of_the_expected_loss(temperature: float) -> None:
    check_sampled_labels(sampled_world(temperature=temperature))


# --- 2. soft labels: one Jacobian-vector product is double backward -------------------------------------------------


@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "batch norm"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_exact_feedback_is_double_backward_through_the_update(name: str, norm: bool) -> None:
    check_soft_labels(World(exact(), OPTIMISERS[name], norm=norm))


LAYERS: dict[str, dict[str, Any]] = {
    "layer decay": dict(layer_decay=0.5, head_lr=3.0),
    "frozen": dict(freeze=1, head_lr=2.0),
    "frozen with its norm": dict(freeze=2),
    "all but the classifier": dict(freeze=-1),
    "at rate 0 still": dict(freeze=1, freeze_steps=5, layer_decay=0.5),
    "at rate 0 before": dict(freeze=1, freeze_steps=2),
}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_exact_feedback_holds_with_rates_by_layer_and_frozen_layers(name: str, layers: str) -> None:
    changes = LAYERS[layers] | ({"clip": 0.02} if OPTIMISERS[name].clip else {})
    check_soft_labels(World(exact(), OPTIMISERS[name].model_copy(update=changes), norm=True))


@pytest.mark.parametrize("name", ["apex:FusedSGD", "apex:FusedAdam", "apex:FusedLAMB"])
def test_apex_takes_a_rate_for_each_layer(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_apex.installed(monkeypatch, tmp_path)
    check_soft_labels(World(exact(), optimiser(name, layer_decay=0.5, head_lr=3.0), norm=True))


@pytest.mark.parametrize("name", ["sgd", "fastmpl:sgd_ema", "adamw", "lamb"])
def test_layers_at_rate_0_stay_bit_for_bit_and_then_learn(name: str) -> None:
    world = World(exact(), optimiser(name, freeze=1, freeze_steps=2))
    first = world.student.parameters["0.weight"]
    start, moved = first.detach().clone(), []
    for step in range(3):
        world.take(step)
        moved.append(not torch.equal(first, start))
    assert moved == [False, False, True]


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.7),
        dict(student_label_smoothing=0.15),
        dict(temperature=0.7, student_label_smoothing=0.15),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["nesterov", "adamw clipped"])
def test_exact_feedback_holds_with_temperature_and_smoothing(name: str, settings: dict[str, Any]) -> None:
    check_soft_labels(World(exact(**settings), OPTIMISERS[name], norm=True))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_exact_feedback_holds_where_lambs_trust_ratio_is_clipped_and_where_it_is_not(scale: float) -> None:
    """LAMBC's clip at 1. Ten times the first weights: their ratio is above it, that of the last weights below."""
    world = World(exact(), optimiser("lamb", lr=0.05))
    world.student.parameters["0.weight"].data.mul_(scale)
    for group in world.student.optimiser.inner.param_groups:
        group["trust_clip"] = True
    check_soft_labels(world)
    ratios = [
        world.student.parameters[f"{layer}.weight"].norm() / lamb_direction(world, layer).norm() for layer in (0, 2)
    ]
    assert [bool(ratio > 1) for ratio in ratios] == [scale > 1, False]


def lamb_direction(world: World, layer: int) -> Tensor:
    """Nearly: at the parameters after the step."""
    p = world.student.parameters[f"{layer}.weight"]
    state, t = world.student.optimiser.inner.state[p], 4
    m, v = state["exp_avg"] / (1 - 0.9**t), state["exp_avg_sq"] / (1 - 0.999**t)
    return m / (v.sqrt() + 1e-6) + 0.01 * p.detach()


@pytest.mark.parametrize("name", ["apex:FusedSGD", "apex:FusedAdam", "apex:FusedLAMB"])
def test_exact_feedback_holds_with_apex(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a stand-in with its interface; FusedLAMB overwrites the gradients that the derivative needs."""
    fake_apex.installed(monkeypatch, tmp_path)
    check_soft_labels(World(exact(), optimiser(name, clip=0.05), norm=True))


def test_exact_feedback_holds_with_dropout_and_a_trusted_set() -> None:
    method = exact(feedback=Feedback("exact", images="trusted"))
    check_soft_labels(World(method, OPTIMISERS["nesterov"], norm=True, dropout=0.3, trusted=5))


def test_the_difference_form_agrees_with_double_backward_to_its_step() -> None:
    check_soft_labels(World(exact(), OPTIMISERS["nesterov"], norm=True, tangent="difference"), tolerance=1e-3)


def test_flipped_feedback_is_the_negative_gradient() -> None:
    method = exact()
    flipped = replace(method, feedback=Feedback("exact", control="flipped"))
    torch.testing.assert_close(World(flipped).teacher_gradient(0), -World(method).teacher_gradient(0))


def test_per_example_feedback_in_expectation_is_the_exact_one() -> None:
    """sum_c q_c * gradient with label c = gradient of sum_c r_c q_c: it is the same estimator, one label at a time."""
    r = torch.randn(4, CLASSES, dtype=torch.float64)
    logits = torch.randn(4, CLASSES, dtype=torch.float64, requires_grad=True)
    q = torch.softmax(logits / 0.7, -1)
    expected = torch.autograd.grad((r * q).sum(), logits, retain_graph=True)[0]
    found = torch.zeros_like(logits)
    for c in range(CLASSES):
        label = torch.full((4,), c)
        credit = feedback.read_at_label(r, label)
        weight = torch.ones((), dtype=torch.float64)
        loss = credit_loss(logits, PerExampleFeedback(credit, label, weight), 0.7)
        found += q.detach()[:, c : c + 1] * torch.autograd.grad(loss, logits)[0]
    assert relative(found, expected) < 1e-12


# --- 3. soft labels with the scalar teach nothing -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_soft_labels_with_one_scalar_have_no_gradient(temperature: float) -> None:
    logits = torch.randn(5, CLASSES, dtype=torch.float64, requires_grad=True)
    q = torch.softmax(logits.detach() / temperature, -1)
    gradient = torch.autograd.grad(F.cross_entropy(logits / temperature, q), logits)[0]
    assert gradient.abs().max() < 1e-15


# --- 4. a student that does not move gives no feedback --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scalar", "exact", "per_example"])
def test_a_student_that_does_not_move_gives_no_feedback_with_batch_norm_and_dropout_on(kind: str) -> None:
    check_zero(kind)


def test_the_scalar_follows_its_first_order_value() -> None:
    method = exact(targets="sampled", feedback=Feedback("scalar"))
    scalar = World(method, optimiser("nesterov"), norm=True, dropout=0.3)
    first_order = World(
        replace(method, targets="soft", feedback=Feedback("exact")), optimiser("nesterov"), norm=True, dropout=0.3
    )
    pairs = []
    for step in range(25):
        first_order.student.load(scalar.student.state())
        first_order.teacher.load(scalar.teacher.state())
        first_order.method = type("Same", (MetaPseudoLabels,), {"label": scalar.method.label})(
            **vars(first_order.method)
        )
        pairs.append((scalar.take(step).feedback, first_order.take(step).feedback))
    a, b = torch.tensor(pairs, dtype=torch.float64).T
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.98
