"""Compiled networks take the steps of eager ones; the tangent is there; and what cannot be compiled is refused."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fastmpl.errors import ConfigError
from fastmpl.learners.plain import PlainLearner
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.uda import Consistency
from fastmpl.models import build
from fastmpl.models.layout import channels_last
from fastmpl.step.context import make_context
from fastmpl.step.mpl_step import MplStep
from fastmpl.step.order import split
from fastmpl.step.step_metrics import StepMetrics
from tests.step.captured import batches, config
from tests.step.worlds import optimiser

SHAPE = (3, 8, 8)


def learner(seed: int, compiler: str, dropout: float = 0.2) -> PlainLearner:
    module = build("conv", classes=10, image_shape=SHAPE, dropout=dropout, norm="batch", width=16, depth=1, seed=seed)
    return PlainLearner(channels_last(module), optimiser("nesterov"), steps=10, compiler=compiler)


def steps(kind: Literal["exact", "scalar"], compiler: str) -> list[StepMetrics]:
    teacher, student = learner(1, compiler), learner(2, compiler)
    targets: Literal["soft", "sampled"] = "soft" if kind == "exact" else "sampled"
    method = MetaPseudoLabels(unlabelled=16, targets=targets, feedback=Feedback(kind), consistency=Consistency())
    reports = []
    for number, batch in enumerate(batches(config(), 3)):
        context = make_context(torch.tensor(7), torch.tensor(number), torch.ones(()))
        reports.append(
            MplStep(method, split(method, deferred=True), teacher, student)([batch], context, torch.zeros(()))
        )
    return reports


def close(kind: Literal["exact", "scalar"], compiler: str) -> None:
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found, expected = steps(kind, compiler), steps(kind, "")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    for ours, theirs in zip(found, expected, strict=True):
        for name, a, b in zip(ours._fields, ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert all(report.feedback_size > 1e-6 for report in found)  # around forward mode a compiler would give zeros


@pytest.mark.parametrize("kind", ["exact", "scalar"])
def test_a_step_of_compiled_networks_equals_the_eager_one(kind: Literal["exact", "scalar"]) -> None:
    close(kind, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "scalar"])
def test_a_step_of_networks_compiled_to_kernels_equals_the_eager_one(kind: Literal["exact", "scalar"]) -> None:
    close(kind, "inductor")


class Reads(nn.Module):
    """A network that looks at its data on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images)
        return logits * logits.sum().item() if logits.mean() > 0 else logits


def test_a_network_that_cannot_be_compiled_is_refused_in_a_sentence() -> None:
    refused = PlainLearner(Reads(), optimiser("sgd"), steps=1, compiler="aot_eager")
    with pytest.raises(ConfigError, match=r"Reads cannot be compiled .*: set system\.compile = false\."):
        refused.forward(torch.randn(3, 4), torch.zeros((), dtype=torch.int64))
