"""Each identity fails when what it checks is broken."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmpl.learners import optimiser as learner_optimiser
from fastmpl.learners import plain
from fastmpl.learners.optimiser_rows import OPTIMISERS as TABLE
from fastmpl.learners.optimiser_rows import derivatives
from fastmpl.methods import mpl
from fastmpl.step import credit as step_credit
from fastmpl.step.context import VALIDATION
from tests.step.identities import OPTIMISERS, check_sampled_labels, check_soft_labels, check_zero, exact, sampled_world
from tests.step.worlds import World

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


def clip_before_the_rule(patch: pytest.MonkeyPatch) -> None:
    """The derivative itself, not its transpose: the update clips first, so the transpose clips last."""
    honest = learner_optimiser.Optimiser.derivative

    def turned_round(self: learner_optimiser.Optimiser, update: Any, direction: Any) -> Any:
        factor, length = self.config.clip / update.norm, self.config.clip  # of the gradients as they are kept
        along = sum((update.gradients[name] * v).sum() for name, v in direction.items()) / length
        clipped = {name: factor * (v - update.gradients[name] * along / length) for name, v in direction.items()}
        config, self.config = self.config, self.config.model_copy(update={"clip": 0.0})
        moved = honest(self, update, clipped)
        self.config = config
        return moved

    patch.setattr(learner_optimiser.Optimiser, "derivative", turned_round)


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
        (clip_before_the_rule, lambda: check_soft_labels(World(exact(), OPTIMISERS["adamw clipped"]))),
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
