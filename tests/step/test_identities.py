"""The identities that prove the teacher's gradient, in float64, and that each check fails when what it checks is broken.

References here are written from the definitions, by double backward and by exhaustive sums, not from the code.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fastmpl.config import NetworkConfig
from fastmpl.learners import optimiser as learner_optimiser
from fastmpl.learners import plain
from fastmpl.learners.optimiser_rows import OPTIMISERS as TABLE
from fastmpl.learners.optimiser_rows import derivatives
from fastmpl.methods import feedback, mpl
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.pseudo_label import PseudoLabel
from fastmpl.methods.targets import PseudoLabelLoss, PseudoLabels
from fastmpl.methods.uda import Consistency, Uda
from fastmpl.methods.views import Logits
from fastmpl.models.norms import use_batch_statistics
from fastmpl.models.stochastic import set_draw
from fastmpl.step import credit as step_credit
from fastmpl.step.order import Order, joint, split
from fastmpl.step.single_network_step import SingleNetworkStep
from fastmpl.step.step_keys import STUDENT, TEACHER, VALIDATION
from fastmpl_kernels.teacher_objective.reference import PerExampleFeedback, credit_loss
from tests.learners import fake_apex
from tests.step.worlds import CLASSES, World, optimiser, relative

FEEDBACK_ALONE = dict(supervised_weight=0.0)


def exact(**settings: Any) -> MetaPseudoLabels:
    return MetaPseudoLabels(unlabelled=4, **(FEEDBACK_ALONE | settings))


# --- 1. sampled labels: the scalar estimator, summed over every assignment ---------------------------------------


def check_sampled_labels(world: World) -> None:
    """sum over assignments of P(assignment) * (the step's teacher gradient) = d E[V(theta')] / d psi."""
    unlabelled, batch, context = world.method.unlabelled, world.batch(0), world.context(0)
    assignments = [torch.tensor(a) for a in itertools.product(range(CLASSES), repeat=unlabelled)]
    psi = {name: p.detach().clone().requires_grad_() for name, p in world.teacher.parameters.items()}
    logits = functional_call(world.teacher.module, psi, (torch.cat([batch.labelled, batch.strong]),))
    log_q = F.log_softmax(logits[len(batch.labelled) :] / world.method.temperature, -1)

    found = torch.zeros(sum(p.numel() for p in psi.values()), dtype=torch.float64)
    expected_loss = torch.zeros((), dtype=torch.float64)
    student_state = {name: value.clone() for name, value in world.student.state().items()}
    honest = world.method.learn
    for assignment in assignments:
        forced = type("Forced", (MetaPseudoLabels,), {"learn": _forced(honest, assignment)})
        world.method = forced(**vars(world.method))
        probability = log_q[range(unlabelled), assignment].sum().exp()
        found += probability.detach() * world.teacher_gradient(0)
        inputs = batch.labelled
        with torch.no_grad(), use_batch_statistics(world.student.module):
            set_draw(world.student.module, context.dropout(VALIDATION))
            v = F.cross_entropy(world.student.module(inputs), batch.targets)
        expected_loss = expected_loss + probability * v
        world.student.load(student_state)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expected_loss, list(psi.values()))])
    assert relative(found, expected) < 1e-12


def _forced(learn: Callable[..., PseudoLabelLoss], assignment: Tensor) -> Callable[..., PseudoLabelLoss]:
    def forced(self: MetaPseudoLabels, student: Logits, labels: PseudoLabels) -> PseudoLabelLoss:
        loss = F.cross_entropy(student.of("strong"), assignment)
        return learn(student, labels)._replace(loss=loss, drawn=assignment)

    return forced


def sampled_world(**settings: Any) -> World:
    method = MetaPseudoLabels(unlabelled=2, targets="sampled", feedback=Feedback("scalar"), **FEEDBACK_ALONE)
    return World(replace(method, **settings))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scalar_feedback_summed_over_every_assignment_is_the_gradient_of_the_expected_loss(temperature: float) -> None:
    check_sampled_labels(sampled_world(temperature=temperature))


# --- 2. soft labels: one Jacobian-vector product is double backward -----------------------------------------------


def double_backward(world: World, step: int) -> Tensor:
    """d V(theta'(psi)) / d psi by differentiating through the student's update, written out from its definition."""
    batch, context, method = world.batch(step), world.context(step), world.method
    teacher, student = world.teacher, world.student
    set_draw(teacher.module, context.dropout(TEACHER))
    psi = {name: p.detach().clone().requires_grad_() for name, p in teacher.parameters.items()}
    with use_batch_statistics(teacher.module):
        logits = functional_call(teacher.module, psi, (torch.cat([batch.labelled, batch.strong]),))
    q = torch.softmax(logits[len(batch.labelled) :] / method.temperature, -1)

    theta = {name: p.detach().clone().requires_grad_() for name, p in student.parameters.items()}
    set_draw(student.module, context.dropout(STUDENT))
    with use_batch_statistics(student.module):
        z = functional_call(student.module, theta, (batch.strong,))
    smoothing = method.student_label_smoothing
    target = (1 - smoothing) * q + smoothing / CLASSES
    loss = -(target * F.log_softmax(z, -1)).sum(-1).mean()
    g = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
    new = updated(student, theta, g, world.student_config)

    set_draw(student.module, context.dropout(VALIDATION))
    inputs, targets = (
        (batch.labelled, batch.targets) if batch.trusted is None else (batch.trusted, batch.trusted_targets)
    )
    with use_batch_statistics(student.module):
        v = F.cross_entropy(functional_call(student.module, new, (inputs,)), targets)
    return torch.cat([d.reshape(-1) for d in torch.autograd.grad(v, list(psi.values()))])


def updated(
    student: plain.PlainLearner, theta: dict[str, Tensor], g: dict[str, Tensor], config: NetworkConfig
) -> dict[str, Tensor]:
    """theta' as a differentiable function of g, from each optimiser's published rule and its present state."""
    if config.clip > 0:
        norm = torch.stack([v.square().sum() for v in g.values()]).sum().sqrt()
        assert norm > config.clip, "the clip is not active: this case would test nothing"
        g = {name: v * (config.clip / norm) for name, v in g.items()}
    new = {}
    for name, p in theta.items():
        lr = rate_of(name, student, config)
        state = student.optimiser.inner.state[student.parameters[name]]
        group = next(
            each for each in student.optimiser.inner.param_groups if each["weight_decay"] == decay_of(config, p)
        )
        decay = group["weight_decay"]
        if "exp_avg" in state:
            b1, b2, t = config.momentum, 0.999, float(state.get("step", student.optimiser.count)) + 1
            m = b1 * state["exp_avg"] + (1 - b1) * g[name]
            v = b2 * state["exp_avg_sq"] + (1 - b2) * g[name].square()
            is_lamb = config.optimiser in ("lamb", "apex:FusedLAMB")
            step = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + (1e-6 if is_lamb else 1e-8)) + decay * p
            ratio = p.detach().norm() / step.norm() if is_lamb and decay else torch.ones(())
            if group.get("trust_clip", False):
                ratio = ratio.clamp(max=1)
            new[name] = p - lr * ratio * step
        else:
            decayed = g[name] + decay * p
            buffer = config.momentum * state["momentum_buffer"] + decayed
            nesterov = config.optimiser in ("nesterov", "fastmpl:sgd_ema")
            new[name] = p - lr * (decayed + config.momentum * buffer if nesterov else buffer)
    return new


def rate_of(name: str, student: plain.PlainLearner, config: NetworkConfig) -> float:
    """The rate of a layer after three steps: the network's children are its layers. Rates are float32."""
    layers = list(dict.fromkeys(n.split(".")[0] for n, _ in student.module.named_parameters()))
    layer = layers.index(name.split(".")[0])
    if config.freeze_steps > 3 and layer < config.freeze:
        return 0.0
    factor = config.layer_decay ** (len(layers) - 1 - layer) * (config.head_lr if layer == len(layers) - 1 else 1)
    return (torch.tensor(config.lr) * torch.tensor(factor)).item()


def decay_of(config: NetworkConfig, p: Tensor) -> float:
    return config.weight_decay if p.ndim > 1 else 0.0


def check_soft_labels(world: World, *, steps: int = 3, tolerance: float = 1e-10) -> None:
    """After some steps, so that the optimiser's state is not zero."""
    for step in range(steps):
        world.take(step)
    expected = double_backward(world, steps)
    assert relative(world.teacher_gradient(steps), expected) < tolerance


OPTIMISERS = {
    "sgd": optimiser("sgd", momentum=0.0),
    "heavy ball": optimiser("sgd"),
    "nesterov": optimiser("nesterov"),
    "fused with its average": optimiser("fastmpl:sgd_ema"),
    "adamw": optimiser("adamw", lr=0.05),
    "sgd clipped": optimiser("sgd", momentum=0.0, clip=0.05),
    "nesterov clipped": optimiser("nesterov", clip=0.05),
    "adamw clipped": optimiser("adamw", clip=0.05),
    "lamb": optimiser("lamb", lr=0.05),
    "lamb clipped": optimiser("lamb", lr=0.05, clip=0.05),
    "lamb without decay": optimiser("lamb", lr=0.05, weight_decay=0.0),
    "lamb, most of its direction decay": optimiser("lamb", lr=0.05, weight_decay=1.0),
}


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


# --- 3. the inert combination -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_soft_labels_with_one_scalar_have_no_gradient(temperature: float) -> None:
    logits = torch.randn(5, CLASSES, dtype=torch.float64, requires_grad=True)
    q = torch.softmax(logits.detach() / temperature, -1)
    gradient = torch.autograd.grad(F.cross_entropy(logits / temperature, q), logits)[0]
    assert gradient.abs().max() < 1e-15


# --- 4. zero ------------------------------------------------------------------------------------------------------


def check_zero(kind: str) -> None:
    targets = "soft" if kind == "exact" else "sampled"
    method = exact(targets=targets, feedback=Feedback(kind))  # type: ignore[arg-type]
    world = World(method, optimiser(lr=0.0), norm=True, dropout=0.5)
    for step in range(3):
        report = world.take(step)
        assert abs(report.feedback) < 1e-12
        assert report.feedback_size < 1e-12
        assert report.student_norm > 0


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


# --- 5. equivalences ----------------------------------------------------------------------------------------------


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


# --- each identity fails when what it checks is broken ------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def inverted_sign(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(step_credit, "apply_control", lambda credit, control, key: -credit)
    patch.setattr(mpl.feedback, "apply_control", lambda credit, control, key: -credit)


def labels_redrawn(patch: pytest.MonkeyPatch) -> None:
    """The teacher is credited for the arg max instead of the labels that the student learnt."""
    honest = mpl.teacher_objective

    def redrawn(labelled: Tensor, targets: Tensor, strong: Tensor, *, feedback: Any, **settings: Any) -> Any:
        return honest(labelled, targets, strong, feedback=feedback._replace(label=strong.argmax(-1)), **settings)

    patch.setattr(mpl, "teacher_objective", redrawn)


def before_on_another_batch(patch: pytest.MonkeyPatch) -> None:
    """ "Before" is measured inside the student's larger batch, "after" on the labelled images alone."""

    def mixed(phase: step_credit.CreditPhase, parts: Any, contexts: Any) -> Tensor:
        batch = parts[0]
        inputs = torch.cat([batch.labelled, batch.strong])
        rows = phase.student.observe(inputs, contexts[0].dropout(VALIDATION))[: len(batch.labelled)]
        return F.cross_entropy(rows, batch.targets)

    patch.setattr(step_credit.CreditPhase, "loss_before", mixed)


def tangent_at_new_parameters(patch: pytest.MonkeyPatch) -> None:
    honest = plain.PlainLearner.tangents

    def late(self: plain.PlainLearner, update: Any, *rest: Any) -> list[Tensor]:
        now = {name: p.detach().clone() for name, p in self.parameters.items()}
        return honest(self, update._replace(old=now), *rest)

    patch.setattr(plain.PlainLearner, "tangents", late)


def trust_ratio_held_constant(patch: pytest.MonkeyPatch) -> None:
    """LAMB's ratio is kept, its own dependence on the gradient dropped."""
    changed = TABLE["lamb"]._replace(derivative=_lamb_by_ratio_alone)
    patch.setattr(learner_optimiser, "OPTIMISERS", {**TABLE, "lamb": changed})


def _lamb_by_ratio_alone(stepped: Any, vectors: Any) -> list[Tensor]:
    ratios = [1.0 if u is None else each.old.norm() / u.norm() for each, u in _directions(stepped)]
    scaled = [ratio * v for ratio, v in zip(ratios, vectors, strict=True)]
    return [stepped[0].group["lr"] * moved for moved in derivatives._by_gradient(stepped, scaled)]


def projection_after_the_diagonal(patch: pytest.MonkeyPatch) -> None:
    """The derivative itself, not its transpose: the two differ where it is not symmetric."""
    changed = TABLE["lamb"]._replace(derivative=_lamb_turned_round)
    patch.setattr(learner_optimiser, "OPTIMISERS", {**TABLE, "lamb": changed})


def _lamb_turned_round(stepped: Any, vectors: Any) -> list[Tensor]:
    by_gradient = derivatives._by_gradient(stepped, vectors)
    for (each, u), moved in zip(_directions(stepped), by_gradient, strict=True):
        if u is not None:
            n = u / u.norm()
            moved.copy_(each.old.norm() / u.norm() * (moved - n * (n * moved).sum()))
    return [stepped[0].group["lr"] * moved for moved in by_gradient]


def _directions(stepped: Any) -> list[tuple[Any, Tensor | None]]:
    """LAMB's direction of every parameter that its trust ratio scales."""
    counts = derivatives._Counts.of(stepped)
    return [(each, derivatives._direction(each, counts) if each.group["weight_decay"] else None) for each in stepped]


def clip_held_constant(patch: pytest.MonkeyPatch) -> None:
    """The clip's factor is kept, its own dependence on the gradient dropped."""
    honest = learner_optimiser.Optimiser.derivative

    def scaled(self: learner_optimiser.Optimiser, update: Any, direction: Any) -> Any:
        config, self.config = self.config, self.config.model_copy(update={"clip": 0.0})
        moved = honest(self, update, direction)
        self.config = config
        return {name: v * (config.clip / update.norm).clamp(max=1) for name, v in moved.items()}

    patch.setattr(learner_optimiser.Optimiser, "derivative", scaled)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (inverted_sign, lambda: check_sampled_labels(sampled_world())),
        (inverted_sign, lambda: check_soft_labels(World(exact()))),
        (labels_redrawn, lambda: check_sampled_labels(sampled_world())),
        (before_on_another_batch, lambda: check_zero("scalar")),
        (tangent_at_new_parameters, lambda: check_soft_labels(World(exact()))),
        (trust_ratio_held_constant, lambda: check_soft_labels(World(exact(), OPTIMISERS["lamb"]))),
        (projection_after_the_diagonal, lambda: check_soft_labels(World(exact(), OPTIMISERS["lamb"]))),
        (clip_held_constant, lambda: check_soft_labels(World(exact(), OPTIMISERS["nesterov clipped"]))),
    ],
    ids=lambda value: value.__name__ if value.__name__ != "<lambda>" else "",
)
def test_the_identities_fail_when_broken(
    fault: Break, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()
