"""The references and checks of the identities that prove the teacher's gradient, in float64.

They are written from the definitions, by double backward and by exhaustive sums, not from the code.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fastmpl.config import NetworkConfig
from fastmpl.learners import plain
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.targets import PseudoLabelLoss, PseudoLabels
from fastmpl.methods.views import Logits
from fastmpl.models.norms import use_batch_statistics
from fastmpl.models.stochastic import set_draw
from fastmpl.step.context import STUDENT, TEACHER, VALIDATION
from tests.step.worlds import CLASSES, World, optimiser, relative

FEEDBACK_ALONE = dict(supervised_weight=0.0)


def exact(**settings: Any) -> MetaPseudoLabels:
    return MetaPseudoLabels(unlabelled=4, **(FEEDBACK_ALONE | settings))


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


def check_zero(kind: str) -> None:
    targets = "soft" if kind == "exact" else "sampled"
    method = exact(targets=targets, feedback=Feedback(kind))  # type: ignore[arg-type]
    world = World(method, optimiser(lr=0.0), norm=True, dropout=0.5)
    for step in range(3):
        report = world.take(step)
        assert abs(report.feedback) < 1e-12
        assert report.feedback_size < 1e-12
        assert report.student_norm > 0
