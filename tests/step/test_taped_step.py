"""A step that is run from a tape is the step that eager execution takes, whatever the form of the step."""

from collections.abc import Callable

import pytest
import torch

from fastmpl.step.step_graph import WARMUP
from fastmpl.step.step_metrics import StepMetrics
from fastmpl.step.taped_step import TapedStep
from fastmpl.telemetry.metrics import Meter
from tests.step.captured import FORMS, batches, config, trainee

RECORDED = WARMUP + 1
PERCEPTRONS = {"student__model": "perceptron", "teacher__model": "perceptron"}
SMALL = config(**PERCEPTRONS)


def refuse(reason: str) -> None:
    raise AssertionError(reason)


@pytest.mark.parametrize(
    "form",
    [
        *FORMS,
        PERCEPTRONS | {"feedback__kind": "exact"},
        {"method__name": "uda"},
        {"method__name": "supervised", "student__optimiser": "adamw"},
        {"method__name": "gold_correction", "method__corruption": "identity", "data__trusted": 8},
    ],
    ids=str,
)
def test_a_taped_step_equals_the_eager_one_bit_for_bit_while_rates_change(form: dict[str, object]) -> None:
    settings = config(**form)
    eager, other = trainee(settings, "cpu"), trainee(settings, "cpu")
    taped = TapedStep(other.step, give_up=refuse)
    rates = set()
    for batch in batches(settings, RECORDED + 8):
        expected, found = eager.step(batch), taped(batch)
        for name, a, b in zip(expected._fields, expected, found, strict=True):
            assert torch.equal(a, b), name
        rates.add(float(found.student_rate))
    assert taped._tapes
    assert len(rates) > WARMUP
    for name, value in eager.parts().state().items():
        assert torch.equal(value, other.parts().state()[name]), name


def test_metrics_are_added_up_by_the_tape() -> None:
    eager, other = trainee(SMALL, "cpu"), trainee(SMALL, "cpu")
    expected, found = Meter(), Meter()
    eager.step.watch, other.step.watch = expected.add, found.add
    taped = TapedStep(other.step, give_up=refuse)
    for batch in batches(SMALL, RECORDED + 3):
        eager.step(batch)
        taped(batch)
    assert torch.equal(expected.kept, found.kept)


def test_a_loaded_state_is_the_one_that_goes_on_and_another_shape_is_eager() -> None:
    eager, other = trainee(SMALL, "cpu"), trainee(SMALL, "cpu")
    start = {name: value.clone() for name, value in other.parts().state().items()}
    taped = TapedStep(other.step, give_up=refuse)
    given = batches(SMALL, RECORDED + 3)
    for batch in given:
        taped(batch)
    other.parts().load(start)
    given[1] = given[1]._replace(labelled=given[1].labelled[:4], targets=given[1].targets[:4])
    for batch in given[:3]:
        expected, found = eager.step(batch), taped(batch)
        assert torch.equal(expected.student_loss, found.student_loss)


def test_a_step_that_reads_a_tensor_stays_eager_and_says_why() -> None:
    check_refusal(lambda report: float(report.student_loss), "reads what was computed")


def test_a_step_with_a_number_of_python_that_changes_stays_eager_and_says_why() -> None:
    seen, count = torch.zeros(()), 0

    def watch(report: StepMetrics) -> None:
        nonlocal count
        count += 1
        seen.fill_(count)

    check_refusal(watch, "aten.fill_.Scalar is given something else")


def test_a_step_that_replaces_a_tensor_of_its_state_stays_eager_and_says_why() -> None:
    seen = torch.zeros(())

    def watch(report: StepMetrics) -> None:
        nonlocal seen
        seen = seen + report.student_loss

    check_refusal(watch, "it keeps a tensor that it made")
    assert seen > 0


def test_a_step_that_makes_a_tensor_of_the_host_stays_eager_and_says_why() -> None:
    seen = torch.zeros(())

    def watch(report: StepMetrics) -> None:
        seen.copy_(torch.tensor(report.skipped.dim()))

    check_refusal(watch, "is given something else")


def check_refusal(watch: Callable[[StepMetrics], object], reason: str) -> None:
    """Such a step is the eager one all the same."""
    eager, other = trainee(SMALL, "cpu"), trainee(SMALL, "cpu")
    other.step.watch = watch
    said: list[str] = []
    taped = TapedStep(other.step, give_up=said.append)
    for batch in batches(SMALL, RECORDED + 3):
        expected, found = eager.step(batch), taped(batch)
        assert torch.equal(expected.teacher_norm, found.teacher_norm)
    assert len(said) == 1
    assert reason in said[0]
