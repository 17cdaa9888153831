"""`feedback.every` spaces the steps that credit the labels: the same mean gradient, and nothing of feedback in between."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastmpl.data.batch import Batch
from fastmpl.learners.plain import PlainLearner
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.run.build import Trainee
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_graph import WARMUP, GraphedStep
from fastmpl.step.step_metrics import StepMetrics
from fastmpl.step.taped_step import TapedStep
from fastmpl.telemetry.metrics import Meter
from tests.step.captured import FORMS, batches, config, trainee
from tests.step.emulated_cuda import Cuda
from tests.step.worlds import World

CPU = torch.device("cpu")
EVERY = 3
SMALL: Mapping[str, Any] = {"student__model": "perceptron", "teacher__model": "perceptron"}
SCALAR: Mapping[str, Any] = {"method__targets": "sampled", "feedback__kind": "scalar", "feedback__baseline": 0.9}
MEASURED = ("feedback_loss", "feedback", "feedback_size", "feedback_ratio")


def start(**changes: Any) -> tuple[Trainee, list[Batch]]:
    settings = config(**(SMALL | {"feedback__every": EVERY} | changes))
    return trainee(settings, "cpu"), batches(settings, 4 * EVERY)


def copy_state(one: Trainee) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.parts().state().items()}


def assert_equal_metrics(expected: StepMetrics, found: StepMetrics) -> None:
    for name, a, b in zip(expected._fields, expected, found, strict=True):
        assert torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)), name


def assert_equal_states(one: Trainee, other: Trainee) -> None:
    state = other.parts().state()
    for name, value in one.parts().state().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("kind", ["exact", "per_example", "scalar"])
@pytest.mark.parametrize("every", [2, 4])
def test_the_mean_over_the_phases_of_a_period_is_the_gradient_of_feedback_at_every_step(kind: Any, every: int) -> None:
    method = MetaPseudoLabels(
        unlabelled=4, targets="soft" if kind == "exact" else "sampled", feedback=Feedback(kind, weight=0.6)
    )
    wanted = World(method).teacher_gradient(0)
    credited = World(replace(method, feedback=replace(method.feedback, every=every))).teacher_gradient(0)
    between = World(method.without_feedback()).teacher_gradient(0)
    torch.testing.assert_close((credited + (every - 1) * between) / every, wanted, rtol=1e-12, atol=1e-15)
    assert not torch.allclose(credited, wanted, rtol=1e-3)


def test_the_size_that_is_reported_is_that_of_the_mean_gradient() -> None:
    method = MetaPseudoLabels(unlabelled=4)
    often, seldom = (World(replace(method, feedback=Feedback(every=every))).take(0) for every in (1, 4))
    assert torch.equal(often.feedback_ratio, seldom.feedback_ratio)


def test_steps_whose_number_is_a_multiple_credit_and_the_others_measure_nothing() -> None:
    run, given = start()
    for number, batch in enumerate(given, start=1):
        metrics = run.step(batch)
        for name in MEASURED:
            assert bool(getattr(metrics, name).isfinite()) == (number % EVERY == 0), (number, name)
        assert metrics.student_loss > 0
        assert metrics.supervised_loss > 0


def test_the_moving_average_of_the_scalar_is_that_of_the_steps_that_credit() -> None:
    run, given = start(**SCALAR)
    for number, batch in enumerate(given, start=1):
        before = run.step.baseline.clone()
        run.step(batch)
        assert torch.equal(run.step.baseline, before) == (number % EVERY != 0)


def test_the_means_of_a_line_are_those_of_the_steps_that_credit() -> None:
    run, given = start()
    meter, sizes = Meter(), []
    run.step.watch = meter.add
    for batch in given:
        sizes.append(float(run.step(batch).feedback_size))
    meter.finish(len(given))
    (line,) = meter.read()
    credited = [size for size in sizes if size == size]
    assert len(credited) == len(given) // EVERY
    assert line.values["feedback_size"] == pytest.approx(sum(credited) / len(credited))


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
@pytest.mark.parametrize("kind", [{}, SCALAR], ids=["exact", "scalar"])
def test_a_run_that_resumes_within_a_period_goes_on_bit_for_bit(stop: int, kind: Mapping[str, Any]) -> None:
    (whole, given), (stopped, _), (resumed, _) = start(**kind), start(**kind), start(**kind)
    for batch in given:
        whole.step(batch)
    for batch in given[:stop]:
        stopped.step(batch)
    resumed.parts().load(copy_state(stopped))
    for batch in given[stop:]:
        resumed.step(batch)
    assert_equal_states(whole, resumed)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_tape_of_each_kind_of_step_equals_eager_steps(form: dict[str, object]) -> None:
    settings = config(**(form | {"feedback__every": 2}))
    eager, other = trainee(settings, "cpu"), trainee(settings, "cpu")

    def refuse(reason: str) -> None:
        raise AssertionError(reason)

    taped = TapedStep(other.step, give_up=refuse)
    for batch in batches(settings, 2 * (WARMUP + 3)):
        assert_equal_metrics(eager.step(batch), taped(batch))
    assert taped._tapes.keys() == {True, False}
    assert_equal_states(eager, other)


def test_a_graph_of_each_kind_of_step_equals_eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, cuda = config(**SMALL, feedback__every=2), Cuda(monkeypatch)
    eager, captured = trainee(settings, "cpu"), trainee(settings, "cpu")
    graphed = GraphedStep(captured.step, CPU)
    for batch in batches(settings, 2 * (WARMUP + 3)):
        assert_equal_metrics(eager.step(batch), graphed(batch))
    assert [graph.replays for graph in cuda.graphs] == [3, 3]
    assert_equal_states(eager, captured)


def test_a_graph_goes_on_within_a_period_that_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(**SMALL, feedback__every=2)
    Cuda(monkeypatch)
    eager, captured = trainee(settings, "cpu"), trainee(settings, "cpu")
    given = batches(settings, 2 * (WARMUP + 1))
    eager.step(given[0])
    graphed = GraphedStep(captured.step, CPU)
    for batch in given:
        graphed(batch)
    captured.parts().load(copy_state(eager))  # one step was taken: the next one credits
    for batch in given[:4]:
        assert_equal_metrics(eager.step(batch), graphed(batch))


class Operators(TorchDispatchMode):
    """The operators of the calls within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def list_operators(step: EagerStep, batch: Batch) -> list[str]:
    step(batch)  # the optimiser's state is there from now on
    with Operators() as mode:
        step(batch)
    return mode.names


@pytest.mark.parametrize(
    "kind", [{}, SCALAR, {"feedback__tangent": "difference"}], ids=["exact", "scalar", "difference"]
)
def test_a_step_between_two_others_has_the_operators_of_one_without_feedback(kind: Mapping[str, Any]) -> None:
    model = {"student__model": "conv", "teacher__model": "conv"}
    (spaced, given), (off, _) = start(**model, **kind, feedback__every=9), start(**model, feedback__kind="off",
        feedback__every=1, **{k: v for k, v in kind.items() if k == "method__targets"})  # fmt: skip
    assert list_operators(spaced.step, given[0]) == list_operators(off.step, given[0])


def test_a_step_between_two_others_keeps_nothing_for_a_tangent() -> None:
    run, given = start(student__model="conv", teacher__model="conv", feedback__every=2)
    student = run.student
    assert isinstance(student, PlainLearner) and student.kept is not None
    kept: list[bool] = []
    keep = student.kept.keep
    student.kept.keep = lambda images: kept.append(True) or keep(images)  # type: ignore[method-assign, func-returns-value]
    run.step(given[0])
    assert not kept
    run.step(given[1])
    assert kept


@pytest.mark.parametrize("wrong", [{"control": "flip"}, {"kind": "excat"}, {"images": "test"}, {"every": 0}], ids=str)
def test_a_word_that_is_none_is_refused_where_the_feedback_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Feedback: {next(iter(wrong))} = "):
        Feedback(**wrong)
    with pytest.raises(ValueError, match="Feedback: "):
        replace(Feedback(), **wrong)
