"""A captured step's protocol without a GPU: what is noted once and run again is the step that eager execution takes."""

from collections.abc import Callable

import pytest
import torch

from fastmpl.data.batch import Batch
from fastmpl.step.step_graph import WARMUP, CaptureError, GraphedStep
from fastmpl.telemetry.metrics import Meter
from tests.step.captured import FORMS, batches, config, trainee
from tests.step.emulated_cuda import Cuda

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_replayed_step_equals_the_eager_one_bit_for_bit_while_rates_change(
    form: dict[str, object], cuda: Cuda
) -> None:
    settings = config(**form)
    eager, captured = trainee(settings, "cpu"), trainee(settings, "cpu")
    graphed = GraphedStep(captured.step, CPU)
    rates = set()
    for batch in batches(settings, WARMUP + 20):
        expected, found = eager.step(batch), graphed(batch)
        for name, a, b in zip(expected._fields, expected, found, strict=True):
            assert torch.equal(a, b), name
        rates.add(float(found.student_rate))
    assert cuda.graphs[0].replays == 20
    assert int(captured.step.step) == WARMUP + 20
    assert len(rates) > WARMUP
    for name, value in eager.parts().state().items():
        assert torch.equal(value, captured.parts().state()[name]), name


def test_metrics_are_added_up_within_the_graph(cuda: Cuda) -> None:
    settings = config()
    eager, captured = trainee(settings, "cpu"), trainee(settings, "cpu")
    expected, found = Meter(), Meter()
    eager.step.watch, captured.step.watch = expected.add, found.add
    graphed = GraphedStep(captured.step, CPU)
    for batch in batches(settings, WARMUP + 3):
        eager.step(batch)
        graphed(batch)
    assert torch.equal(expected.kept, found.kept)


def test_a_state_that_is_loaded_after_the_capture_is_the_one_that_goes_on(cuda: Cuda) -> None:
    settings = config()
    eager, captured = trainee(settings, "cpu"), trainee(settings, "cpu")
    start = {name: value.clone() for name, value in captured.parts().state().items()}
    graphed = GraphedStep(captured.step, CPU)
    given = batches(settings, WARMUP + 2)
    for batch in given:
        graphed(batch)
    captured.parts().load(start)
    for batch in given[:2]:
        expected, found = eager.step(batch), graphed(batch)
        assert torch.equal(expected.student_loss, found.student_loss)


def test_batches_are_made_beside_the_replay_and_awaited_before_they_are_read(cuda: Cuda) -> None:
    settings = config()
    graphed = GraphedStep(trainee(settings, "cpu").step, CPU)
    given = batches(settings, WARMUP + 2)
    for batch in given[:-1]:
        graphed(batch)
    where = []

    def following() -> Batch:
        where.append(torch.cuda.current_stream().name)
        return given[-1]

    batch = graphed.load_next(following)
    assert where == ["loading"]
    cuda.log.clear()
    graphed(batch)
    # the loading stream waits for the copies into the inputs, and not for the replay: that is the overlap
    assert cuda.log == ["on loading", "current waits for loading", "loading waits for current", "replay"]


def test_the_capture_stream_sees_the_inputs_and_the_caller_what_it_did(cuda: Cuda) -> None:
    settings = config()
    graphed = GraphedStep(trainee(settings, "cpu").step, CPU)
    graphed(batches(settings, 1)[0])
    assert cuda.log == [
        "on loading",
        "current waits for loading",
        "loading waits for current",
        "capture waits for current",
        "on capture",
        "current waits for capture",
    ]


@pytest.mark.parametrize(
    "change",
    [lambda batch: batch._replace(weak=batch.weak[:-1]), lambda batch: batch._replace(trusted=batch.labelled)],
    ids=["shape", "part"],
)
def test_a_batch_of_another_shape_is_refused_in_a_sentence(change: Callable[[Batch], Batch], cuda: Cuda) -> None:
    settings = config()
    graphed = GraphedStep(trainee(settings, "cpu").step, CPU)
    first, second = batches(settings, 2)
    graphed(first)
    with pytest.raises(CaptureError, match="a captured step needs the same shapes always"):
        graphed(change(second))


def test_a_step_that_reads_the_device_is_refused_and_not_taken_eagerly(cuda: Cuda) -> None:
    settings = config()
    run = trainee(settings, "cpu")
    run.step.watch = lambda report: float(report.student_loss)
    graphed = GraphedStep(run.step, CPU)
    given = batches(settings, WARMUP + 1)
    for batch in given[:-1]:
        graphed(batch)
    before = {name: value.clone() for name, value in run.parts().state().items()}
    with pytest.raises(CaptureError, match=r'Set system\.graph = "off"'):
        graphed(given[-1])
    assert all(torch.equal(value, before[name]) for name, value in run.parts().state().items())


def test_the_emulation_freezes_what_python_holds(cuda: Cuda) -> None:
    """The imitation is worth something only if it goes wrong where a graph would."""
    settings = config()
    run = trainee(settings, "cpu")
    seen, count = torch.zeros(()), 0

    def watch(report: object) -> None:
        nonlocal count
        count += 1
        seen.fill_(count)

    run.step.watch = watch
    graphed = GraphedStep(run.step, CPU)
    for batch in batches(settings, WARMUP + 5):
        graphed(batch)
    assert seen == WARMUP + 1
