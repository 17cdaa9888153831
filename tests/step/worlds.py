"""Small float64 worlds in which a step's mathematics can be checked to machine precision."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastmpl.config import NetworkConfig
from fastmpl.data.batch import Batch
from fastmpl.learners.plain import PlainLearner
from fastmpl.methods.mpl import MetaPseudoLabels
from fastmpl.models.stochastic import KeyedDropout, replace_dropout
from fastmpl.step.context import StepContext, make_context
from fastmpl.step.mpl_step import MplStep
from fastmpl.step.order import Order, split
from fastmpl.step.step_metrics import StepMetrics

CLASSES, FEATURES, HIDDEN = 3, 5, 7


def network(seed: int, *, norm: bool = False, dropout: float = 0.0) -> nn.Module:
    """A perceptron, with batch norm and dropout where asked."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(FEATURES, HIDDEN)]
    layers += [nn.BatchNorm1d(HIDDEN)] if norm else []
    layers += [nn.Tanh()]
    layers += [KeyedDropout(dropout)] if dropout else []
    layers += [nn.Linear(HIDDEN, CLASSES)]
    module = nn.Sequential(*layers).double()
    replace_dropout(module)
    return module


def batch(seed: int, *, labelled: int = 6, unlabelled: int = 4, trusted: int = 0) -> Batch:
    """Random features; the two views are different draws, so that a mixed-up view shows."""
    g = torch.Generator().manual_seed(seed)

    def normal(n: int) -> Tensor:
        return torch.randn(n, FEATURES, generator=g, dtype=torch.float64)

    def classes(n: int) -> Tensor:
        return torch.randint(CLASSES, (n,), generator=g)

    return Batch(
        labelled=normal(labelled),
        targets=classes(labelled),
        labelled_index=torch.arange(labelled),
        weak=normal(unlabelled),
        strong=normal(unlabelled),
        unlabelled_index=torch.arange(100, 100 + unlabelled),
        trusted=normal(trusted) if trusted else None,
        trusted_targets=classes(trusted) if trusted else None,
    )


def optimiser(name: str = "sgd", **settings: Any) -> NetworkConfig:
    """Constant rate, no warm-up, and decay, so that what must not enter the derivative is there."""
    defaults = dict(optimiser=name, lr=0.05, momentum=0.9, weight_decay=0.01, warmup=0, schedule="constant")
    return NetworkConfig(**(defaults | settings))  # type: ignore[arg-type]


PLAIN = optimiser("sgd", lr=1.0, momentum=0.0, weight_decay=0.0)  # a teacher whose step is its gradient


@dataclass
class World:
    """A teacher, a student, and the steps they take together."""

    method: MetaPseudoLabels
    student_config: NetworkConfig = field(default_factory=optimiser)
    teacher_config: NetworkConfig = PLAIN
    norm: bool = False
    dropout: float = 0.0
    trusted: int = 0
    order: Order | None = None
    tangent: str = "jvp"
    parts: int = 1
    recompute: bool = False

    def __post_init__(self) -> None:
        self.teacher = PlainLearner(
            network(1, norm=self.norm, dropout=self.dropout),
            self.teacher_config,
            steps=1000,
            recompute=self.recompute,
        )
        self.student = PlainLearner(
            network(2, norm=self.norm, dropout=self.dropout),
            self.student_config,
            steps=1000,
            tangent=self.tangent,  # type: ignore[arg-type]
            recompute=self.recompute,
        )
        self.baseline = torch.zeros((), dtype=torch.float64)

    def batch(self, step: int) -> Batch:
        return batch(10 + step, unlabelled=self.method.unlabelled, trusted=self.trusted)

    def context(self, step: int) -> StepContext:
        weight = torch.tensor(0.7, dtype=torch.float64)
        return make_context(torch.tensor(1234), torch.tensor(step), weight, parts=self.parts)

    def take(self, step: int) -> StepMetrics:
        """One step of both."""
        order = self.order or split(self.method)
        parts = self.batch(step).parts(self.parts)
        return MplStep(self.method, order, self.teacher, self.student)(parts, self.context(step), self.baseline)

    def teacher_gradient(self, step: int) -> Tensor:
        """The gradient that the teacher's step took, flat; the teacher is left as it was before."""
        before = {name: p.detach().clone() for name, p in self.teacher.parameters.items()}
        self.take(step)
        taken = [(before[name] - p.detach()).reshape(-1) for name, p in self.teacher.parameters.items()]
        with torch.no_grad():
            for name, p in self.teacher.parameters.items():
                p.copy_(before[name])
        return torch.cat(taken)

    def with_method(self, **changes: Any) -> "World":
        return replace(self, method=replace(self.method, **changes))


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())
