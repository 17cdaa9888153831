"""A step whose passes are replayed one by one equals the eager step bit for bit, on imitated graphs."""

from typing import Any

import pytest
import torch
from torch import nn

from fastmpl.analysis.capture_lint import lint
from fastmpl.models import set_draw
from fastmpl.run.build import Trainee
from fastmpl.step.pass_graphs import WARMUP, PassGraphs, replay_passes
from tests.step.captured import batches, config, trainee
from tests.step.pooled_cuda import Pooled

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Pooled:
    return Pooled(monkeypatch)


def with_graphs(run: Trainee, *, shared: bool) -> Trainee:
    assert run.teacher is not None
    replay_passes([run.student, run.teacher], CPU, never_open_together=shared)
    return run


@pytest.mark.parametrize(
    "form",
    [
        {"system__deferred": True},
        {"system__deferred": True, "system__accumulate": 2, "student__dropout": 0.2, "teacher__dropout": 0.2},
        {"method__targets": "sampled", "feedback__kind": "scalar", "feedback__baseline": 0.9},
        {"system__deferred": True, "student__optimiser": "adamw", "student__clip": 1.0},
    ],
    ids=str,
)
def test_replayed_passes_equal_eager_ones_bit_for_bit(form: dict[str, object], cuda: Pooled) -> None:
    settings = config(**form)
    eager, replayed = trainee(settings, "cpu"), with_graphs(trainee(settings, "cpu"), shared=settings.system.deferred)
    for batch in batches(settings, 2 * WARMUP + 4):
        expected, found = eager.step(batch), replayed.step(batch)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(torch.equal(value, replayed.parts().state()[name]) for name, value in eager.parts().state().items())
    assert sum(graph.replays > 0 for graph in cuda.graphs) >= 5  # student: forward, backward; teacher: those and labels


def test_networks_that_are_half_done_together_cannot_share_a_room(cuda: Pooled) -> None:
    """The teacher's graph is kept across the student's pass, whose activations would take its place."""
    settings = config()
    run = with_graphs(trainee(settings, "cpu"), shared=True)
    *first, last = batches(settings, WARMUP + 1)
    for batch in first:
        run.step(batch)
    with pytest.raises(AssertionError, match="a second forward pass"):
        run.step(last)


def test_evaluation_is_not_replayed(cuda: Pooled) -> None:
    module, images = network()
    replayed = PassGraphs(module.__call__, module.eval(), CPU)
    for each in images:
        replayed(each)
    assert not cuda.graphs


def network() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return module, list(torch.randn(WARMUP + 3, 5, 4))


def test_gradients_add_up_over_passes_and_are_no_tensors_of_the_graph(cuda: Pooled) -> None:
    found: list[list[Any]] = []
    for wrap in (False, True):
        module, images = network()
        call = PassGraphs(module.__call__, module, CPU) if wrap else module
        for each in images:
            call(each).square().mean().backward()
        found.append([p.grad for p in module.parameters()])
    assert all(map(torch.equal, *found))


def test_passes_that_are_closed_keep_no_graph_and_go_on_eagerly(cuda: Pooled) -> None:
    module, images = network()
    replayed = PassGraphs(module.__call__, module, CPU)
    for each in images:
        replayed(each).sum().backward()
        with torch.no_grad():
            replayed(each)
    assert sum(graph.replays > 0 for graph in cuda.graphs) == 3
    replayed.close()
    assert not any(graph.calls for graph in cuda.graphs)
    assert torch.equal(replayed(images[0]), module(images[0]))


def test_a_graph_that_is_still_open_is_not_overwritten(cuda: Pooled) -> None:
    module, images = network()
    replayed = PassGraphs(module.__call__, module, CPU)
    for each in images[: WARMUP + 1]:
        replayed(each).sum().backward()
    replayed(images[-1])
    with pytest.raises(AssertionError, match="a second forward pass"):
        replayed(images[-1])


def test_a_captured_backward_pass_differentiates_by_aliases_and_not_by_the_parameters(
    cuda: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parameter's own accumulation node belongs to the stream that made it, which a capture must not wait for."""
    module, images = network()
    given: list[torch.Tensor] = []
    honest = torch.autograd.grad

    def spy(outputs: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        given.extend(inputs)
        return honest(outputs, inputs, *rest, **options)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    replayed = PassGraphs(module.__call__, module, CPU)
    for each in images[: WARMUP + 1]:
        replayed(each).sum().backward()
    parameters = list(module.parameters())
    assert [alias.data_ptr() for alias in given] == [p.data_ptr() for p in parameters]
    assert not any(alias is p for alias in given for p in parameters)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_each_pass_by_itself_could_be_captured(role: str) -> None:
    """By the lint, on fake tensors: labels, a forward pass, its backward up to the parameters' gradients."""
    settings = config(system__deferred=True, student__dropout=0.2, teacher__dropout=0.2)

    class Passes:
        def __init__(self) -> None:
            self.learner = getattr(trainee(settings, "cpu"), role)
            self.images = torch.empty(16, 3, 8, 8)
            self.draw = torch.zeros((), dtype=torch.int64)
            self.cotangent = torch.empty(16, 10)
            self.gradients = [torch.empty_like(p) for p in self.learner.parameters.values()]

        def step(self) -> None:
            self.learner.observe(self.images, self.draw)
            set_draw(self.learner.module, self.draw)
            logits = self.learner.module(self.images)
            gradients = torch.autograd.grad(logits, list(self.learner.parameters.values()), self.cotangent)
            torch._foreach_copy_(self.gradients, list(gradients))

        def advance(self) -> None:
            self.draw.add_(1)

    assert lint(Passes, Passes.step, Passes.advance) == []
