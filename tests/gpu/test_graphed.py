"""On a GPU: a captured step is the eager one, bit for bit, reads nothing on the host, and takes the memory predicted."""

import pytest
import torch

from fastmpl.analysis.accounting import predict_cost
from fastmpl.analysis.fake_run import FakeRun
from fastmpl.step.step_graph import WARMUP, GraphedStep
from fastmpl.telemetry.metrics import Meter
from tests.step.captured import FORMS, SHAPE, batches, config, trainee

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_graph_equals_eager_bit_for_bit_over_twenty_steps_with_changing_rates(form: dict[str, object]) -> None:
    settings = config(**form)
    eager, captured = trainee(settings, "cuda"), trainee(settings, "cuda")
    graphed = GraphedStep(captured.step, GPU)
    for batch in batches(settings, WARMUP + 20):
        expected = eager.step(batch.to(GPU))
        found = graphed(batch)
        for name, a, b in zip(expected._fields, expected, found, strict=True):
            assert torch.equal(a, b), name
    for name, value in eager.parts().state().items():
        assert torch.equal(value, captured.parts().state()[name]), name


def test_the_graphs_of_steps_with_and_without_credit_share_their_memory_and_equal_eager_steps() -> None:
    settings = config(feedback__every=2)
    eager, captured = trainee(settings, "cuda"), trainee(settings, "cuda")
    graphed = GraphedStep(captured.step, GPU)
    for batch in batches(settings, 2 * (WARMUP + 10)):
        expected, found = eager.step(batch.to(GPU)), graphed(batch)
        for name, a, b in zip(expected._fields, expected, found, strict=True):
            assert torch.equal(a, b) or (a.isnan() and b.isnan()), name
    for name, value in eager.parts().state().items():
        assert torch.equal(value, captured.parts().state()[name]), name


@pytest.mark.parametrize("graphed", [False, True], ids=["eager", "graphed"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_step_with_its_metrics_never_waits_for_the_device(form: dict[str, object], graphed: bool) -> None:
    settings = config(**form)
    run = trainee(settings, "cuda")
    meter = Meter(GPU, lines=2)
    run.step.watch = meter.add
    step = GraphedStep(run.step, GPU) if graphed else run.step
    given = [batch.to(GPU) for batch in batches(settings, WARMUP + 3)]
    for batch in given[:-2]:
        step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, batch in enumerate(given[-2:]):
            step(batch)
            meter.finish(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(meter.read()) == 2


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_memory_is_as_predicted_on_fake_tensors(form: dict[str, object]) -> None:
    settings = config(**form)
    expected = predict_cost(
        lambda: FakeRun(settings, 10, SHAPE), FakeRun.step, FakeRun.list_held, round_to=512
    ).peak_bytes
    run = trainee(settings, "cuda")
    batch = batches(settings, 1)[0].to(GPU)
    run.step(batch)
    before = torch.cuda.memory_allocated() - sum(
        value.nbytes for value in [*run.parts().state().values(), *filter(None.__ne__, batch)]
    )
    torch.cuda.reset_peak_memory_stats()
    run.step(batch)
    workspace = 64 << 20  # of cuBLAS and cuDNN, which no operator returns
    assert torch.cuda.max_memory_allocated() - before <= 1.05 * expected + workspace
