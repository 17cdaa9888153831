"""A step that a GPU refuses to capture: said once with its reason, and the run goes on eagerly, bit for bit."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from fastmpl.commands.doctor import compare_graph
from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.data.device_stream import Loans
from fastmpl.learners import plain
from fastmpl.run.graph_choice import choose_execution
from fastmpl.step import step_graph
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_graph import CaptureError, GraphedStep
from tests.imitated_gpu.device import ImitatedGpu
from tests.imitated_gpu.graphs import Pool
from tests.imitated_gpu.steps import GPU, WARMUP, Shape, load_small, make_batches, make_trainee
from tests.imitated_gpu.streams import Event

Plant = Callable[[pytest.MonkeyPatch], None]


def read_in_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The capture dies after the backward pass of the student, in the middle of the step."""
    apply = plain.PlainLearner.apply

    def reads(learner: plain.PlainLearner, step: torch.Tensor, *, keep: bool = False) -> object:
        assert int(step) >= 0
        return apply(learner, step, keep=keep)

    monkeypatch.setattr(plain.PlainLearner, "apply", reads)


def fail_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler raises is of no known class."""
    accumulate = plain.PlainLearner.accumulate

    def fails(learner: plain.PlainLearner, loss: torch.Tensor) -> None:
        accumulate(learner, loss)
        if torch.cuda.is_current_stream_capturing():
            raise KeyError("no such instruction")

    monkeypatch.setattr(plain.PlainLearner, "accumulate", fails)


def small(**changes: object) -> tuple[Config, Shape]:
    return load_small("digits", **changes)


@pytest.mark.parametrize("plant", [read_in_the_update, fail_to_compile])
def test_a_capture_that_fails_is_said_once_and_the_run_goes_on_bit_for_bit(
    plant: Plant, gpu: ImitatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, shape = small()
    eager, chosen = make_trainee(config, shape), make_trainee(config, shape)
    plant(monkeypatch)
    said: list[str] = []
    step = choose_execution(chosen, config, GPU, said.append, decodes=False)
    assert isinstance(step, GraphedStep)
    for batch in make_batches(config, shape, WARMUP + 4):
        expected, found = eager.step(batch.to(GPU)), step(batch)
        assert all(map(torch.equal, expected, found))
    assert len(said) == 1
    assert "cannot be captured as a CUDA graph" in said[0]
    assert ("reads the device" in said[0]) == (plant is read_in_the_update)
    state = chosen.parts().state()
    assert all(torch.equal(value, state[name]) for name, value in eager.parts().state().items())
    assert [graph.replays for graph in gpu.graphs] == [0]


@pytest.mark.parametrize("plant", [read_in_the_update, fail_to_compile])
def test_a_capture_that_fails_keeps_neither_memory_nor_the_stream(
    plant: Plant, gpu: ImitatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eager step that follows needs as much memory as the capture had taken."""
    config, shape = small()
    plant(monkeypatch)
    kept: list[int] = []
    freed: list[Pool] = []
    free = step_graph._free_pool

    def note(pool: Pool) -> None:
        kept.extend(block.tensors for block in gpu.graphs[0].made if block.tensors)
        free(pool)
        freed.append(pool)

    monkeypatch.setattr(step_graph, "_free_pool", note)
    step = choose_execution(make_trainee(config, shape), config, GPU, lambda said: None, decodes=False)
    gc.collect()
    gc.disable()  # nothing waits for a collection
    try:
        for batch in make_batches(config, shape, WARMUP + 1):
            step(batch)
    finally:
        gc.enable()
    assert gpu.graphs[0].made
    assert not kept
    assert [(pool.uses, pool.is_open) for pool in freed] == [(0, False)]
    assert torch.cuda.current_stream() is torch.cuda.default_stream()


def test_no_rank_replays_what_another_could_not_capture(gpu: ImitatedGpu) -> None:
    config, shape = small()
    eager, chosen = make_trainee(config, shape), make_trainee(config, shape)
    said: list[str] = []
    step = GraphedStep(chosen.step, GPU, give_up=said.append, agree=lambda reason: reason or "out of memory")
    for batch in make_batches(config, shape, WARMUP + 3):
        assert all(map(torch.equal, eager.step(batch.to(GPU)), step(batch)))
    assert said == ["out of memory"]
    assert [graph.replays for graph in gpu.graphs] == [0]


def test_a_rank_whose_graph_was_asked_for_ends_with_the_rank_that_has_none(gpu: ImitatedGpu) -> None:
    config, shape = small(system__graph="on")
    step = GraphedStep(make_trainee(config, shape).step, GPU, agree=lambda reason: reason or "out of memory")
    *first, last = make_batches(config, shape, WARMUP + 1)
    for batch in first:
        step(batch)
    with pytest.raises(CaptureError, match=r"on another rank: out of memory.*system\.graph = \"off\""):
        step(last)


def test_the_host_is_two_steps_ahead_of_the_device_at_most(gpu: ImitatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is slower than the loader: what the host has not waited for is not done."""
    monkeypatch.setattr(
        Event, "query", lambda event: all(tick <= gpu.timeline.host.get(n, 0) for n, tick in event.clock.items())
    )
    config, shape = small()
    step = GraphedStep(make_trainee(config, shape).step, GPU)
    loans = Loans[Batch](GPU)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    for batch in make_batches(config, shape, WARMUP + 12):

        def make(batch: Batch = batch) -> Batch:
            made = batch.to(GPU)
            alive.add(made.weak)
            return loans.lend(made)

        step(step.load_next(make))
        most = max(most, len(alive))
    assert most <= 2 + step_graph.AHEAD
    assert gpu.graphs[0].replays == 12


def test_a_graph_that_was_asked_for_by_name_stops_the_run_in_one_sentence(
    gpu: ImitatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, shape = small(system__graph="on")
    read_in_the_update(monkeypatch)
    step = choose_execution(make_trainee(config, shape), config, GPU, pytest.fail, decodes=False)
    *first, last = make_batches(config, shape, WARMUP + 1)
    for batch in first:
        step(batch)
    with pytest.raises(CaptureError, match=r"reads the device.*system\.graph = \"off\"") as raised:
        step(last)
    assert "\n" not in str(raised.value)


def test_a_graph_is_not_tried_where_it_is_switched_off(gpu: ImitatedGpu) -> None:
    config, shape = small(system__graph="off")
    assert isinstance(choose_execution(make_trainee(config, shape), config, GPU, pytest.fail, decodes=False), EagerStep)


def test_the_doctor_names_the_reason(gpu: ImitatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = compare_graph()
    assert (finding.state, finding.sentence) == ("ok", "equal to eager steps, bit for bit")
    read_in_the_update(monkeypatch)
    (finding,) = compare_graph()
    assert finding.state == "bad"
    assert "reads the device" in finding.sentence
