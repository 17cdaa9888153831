"""Faults are planted, and the imitated GPU finds each: those that the first reading found, and others of their kind.

A fault is a function of the imitated device. It does what the faulty code did, in the code as it is where that can be
put back to the faulty form. The error that it must raise names both places, or what is refused.
"""

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastmpl.data import device_stream
from fastmpl.data.batch import Batch
from fastmpl.learners import plain
from fastmpl.step import step_graph
from fastmpl.step.step_graph import GraphedStep
from tests.imitated_gpu.dali import lend
from tests.imitated_gpu.device import ImitatedGpu
from tests.imitated_gpu.faults import CaptureRefusedError, HazardError, HostWaitError
from tests.imitated_gpu.steps import GPU, WARMUP, load_small, make_batches, make_trainee

Patch = pytest.MonkeyPatch
Fault = Callable[[ImitatedGpu, Patch], object]


class Planted(NamedTuple):
    plant: Fault
    error: type[BaseException]
    says: str


def take_steps(steps: int = 3, **changes: object) -> tuple[GraphedStep, list[Batch]]:
    """A captured step of a small run, and its batches."""
    config, shape = load_small("digits", **changes)
    step = GraphedStep(make_trainee(config, shape).step, GPU)
    batches = make_batches(config, shape, WARMUP + steps)
    for batch in batches:
        step(batch)
    return step, batches


def capture(run: Callable[[], Any], **options: Any) -> Any:
    """The graph of `run`, on a stream of its own."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), **options):
        run()
    return graph


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, device="cuda:0")


# The faults that were found in this project ---------------------------------------------------------------------------


def gradients_at_new_addresses(gpu: ImitatedGpu, patch: Patch) -> None:
    """A table of addresses made in a capture is copied from pinned memory that the capture must allocate."""
    gradients = [ones(3), ones(4)]

    def table() -> None:
        torch.tensor([g.data_ptr() for g in gradients]).pin_memory().to(GPU, non_blocking=True)

    capture(table)


def a_table_that_the_cache_dropped(gpu: ImitatedGpu, patch: Patch) -> None:
    """A live graph reads a table that a cache of sixteen entries has dropped meanwhile."""
    cache = {"table": torch.tensor([1, 2, 3]).to(GPU)}
    out = torch.zeros(3, dtype=torch.int64, device="cuda:0")
    graph = capture(lambda: out.add_(cache["table"]))
    cache.clear()
    graph.replay()


def an_optimiser_that_is_not_capturable(gpu: ImitatedGpu, patch: Patch) -> None:
    weight = nn.Parameter(ones(3))
    optimiser = torch.optim.AdamW([weight], fused=True)

    def step() -> None:
        weight.grad = torch.ones_like(weight)
        optimiser.step()

    step()
    capture(step)


def dali_memory_released_on_the_stream_that_loads(gpu: ImitatedGpu, patch: Patch) -> None:
    """The loading stream does not wait for the copies into the static inputs."""
    config, shape = load_small("digits_supervised")
    step = GraphedStep(make_trainee(config, shape).step, GPU)
    patch.setattr(step._loading, "wait_stream", lambda other: None)
    loans = device_stream.Loans[Batch](GPU)
    for batch in make_batches(config, shape, 6):

        def make(batch: Batch = batch) -> Batch:
            return loans.lend(Batch(*(part if part is None else lend(gpu, part) for part in batch)))  # type: ignore[arg-type]

        step(step.load_next(make))


def dali_memory_dropped_after_an_asynchronous_clone(gpu: ImitatedGpu, patch: Patch) -> None:
    """As evaluation did: the clone may still read when DALI writes again."""
    pictures = lend(gpu, torch.rand(4, 3))
    kept = pictures.clone()
    del pictures
    kept.sum()


def a_first_batch_without_record_stream(gpu: ImitatedGpu, patch: Patch) -> None:
    """Its memory is the next batch's while the stream that trains still reads it."""
    loading, current = torch.cuda.Stream(), torch.cuda.current_stream()

    def load() -> Tensor:
        with torch.cuda.stream(loading):
            return torch.rand(8).pin_memory().to(GPU, non_blocking=True)

    batch = load()
    current.wait_stream(loading)
    batch.mul(2)
    del batch
    load()


def a_difference_in_tensor_float_32(gpu: ImitatedGpu, patch: Patch) -> None:
    """A change below the rounding of TF32 is lost in what is compared."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3).to(GPU)
    images = torch.randn(2, 3, 8, 8).to(GPU)
    before = layer(images)
    with torch.no_grad():
        layer.weight.mul_(1 + 1e-4)
    difference = layer(images) - before
    expected = 1e-4 * (before - layer.bias.view(-1, 1, 1))
    error = float((difference - expected).norm() / expected.norm())
    raise ArithmeticError(f"a relative error of {error:.0%}") if error > 0.1 else AssertionError(error)


def an_accumulation_node_of_another_stream(gpu: ImitatedGpu, patch: Patch) -> None:
    """What DeepSpeed holds makes autograd wait for the stream on which it asked for it."""
    weight = nn.Parameter(ones(3))
    node = weight.expand_as(weight).grad_fn.next_functions[0][0]
    capture(lambda: torch.autograd.grad((weight * 2).sum(), [weight]))
    assert node is not None


def a_blocking_copy_in_the_loader(gpu: ImitatedGpu, patch: Patch) -> None:
    """Indices in pageable memory make the host wait for the steps that are queued."""
    torch.cuda.set_sync_debug_mode("error")
    torch.from_numpy(torch.arange(4).numpy()).to(GPU)


def a_read_of_the_device_in_a_captured_step(gpu: ImitatedGpu, patch: Patch) -> None:
    """What any `float(tensor)` in a learner would do."""
    apply = plain.PlainLearner.apply

    def reads(learner: plain.PlainLearner, step: Tensor, *, keep: bool = False) -> object:
        assert float(step) >= 0
        return apply(learner, step, keep=keep)

    patch.setattr(plain.PlainLearner, "apply", reads)
    take_steps()


FOUND: dict[str, Planted] = {
    "gradients at new addresses": Planted(gradients_at_new_addresses, CaptureRefusedError, "pins memory"),
    "a table that the cache dropped": Planted(a_table_that_the_cache_dropped, HazardError, "freed at"),
    "AdamW that is not capturable": Planted(an_optimiser_that_is_not_capturable, RuntimeError, "capturable is False"),
    "DALI's memory released early": Planted(
        dali_memory_released_on_the_stream_that_loads, HazardError, "DALI's memory of .* may still use it"
    ),
    "DALI's memory dropped after a clone": Planted(
        dali_memory_dropped_after_an_asynchronous_clone, HazardError, "DALI's memory of .* may still use it"
    ),
    "a first batch that is not recorded": Planted(a_first_batch_without_record_stream, HazardError, "record_stream"),
    "a difference in TF32": Planted(a_difference_in_tensor_float_32, ArithmeticError, "relative error"),
    "an accumulation node of another stream": Planted(
        an_accumulation_node_of_another_stream, CaptureRefusedError, "accumulation node"
    ),
    "a blocking copy in the loader": Planted(a_blocking_copy_in_the_loader, HostWaitError, "waits for a copy"),
    "a host read in a captured step": Planted(
        a_read_of_the_device_in_a_captured_step, step_graph.CaptureError, "reads the device"
    ),
}


# Others ---------------------------------------------------------------------------------------------------------------


def a_read_before_the_other_stream_has_written(gpu: ImitatedGpu, patch: Patch) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        made = ones(4) * 2
    made.sum()


def a_write_while_another_stream_reads(gpu: ImitatedGpu, patch: Patch) -> None:
    static, side = ones(4), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        kept = static * 2
    static.fill_(0)
    assert kept is not None


def a_parameter_that_is_replaced_after_the_capture(gpu: ImitatedGpu, patch: Patch) -> None:
    weight = {"w": ones(4)}
    out = torch.zeros(4, device="cuda:0")
    graph = capture(lambda: out.copy_(weight["w"] * 2))
    weight["w"] = ones(4) * 3
    graph.replay()


def a_side_stream_that_is_not_joined(gpu: ImitatedGpu, patch: Patch) -> None:
    side, static = torch.cuda.Stream(), ones(4)

    def run() -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            static.add_(1)

    capture(run)


def a_launch_beside_the_capture(gpu: ImitatedGpu, patch: Patch) -> None:
    side, static = torch.cuda.Stream(), ones(4)

    def run() -> None:
        with torch.cuda.stream(side):
            static.add_(1)

    capture(run)


def a_wait_for_work_outside_the_capture(gpu: ImitatedGpu, patch: Patch) -> None:
    event = torch.cuda.Event()
    event.record()
    capture(lambda: torch.cuda.current_stream().wait_event(event))


def a_result_of_a_graph_read_before_its_replay(gpu: ImitatedGpu, patch: Patch) -> None:
    static, made = ones(4), []
    capture(lambda: made.append(static * 2))
    raise ArithmeticError(str(made[0].cpu())) if made[0].isnan().all() else AssertionError("the numbers are there")


def pinned_memory_filled_again_during_its_copy(gpu: ImitatedGpu, patch: Patch) -> None:
    staging = torch.rand(8).pin_memory()
    kept = staging.to(GPU, non_blocking=True)
    staging.fill_(0)
    assert kept is not None


def numbers_on_the_host_before_they_have_arrived(gpu: ImitatedGpu, patch: Patch) -> None:
    arriving = torch.empty(4).pin_memory()
    arriving.copy_(ones(4), non_blocking=True)
    arriving.sum()


def a_shape_that_depends_on_data(gpu: ImitatedGpu, patch: Patch) -> None:
    static = ones(4)
    capture(lambda: static[static > 0])


def a_capture_on_the_default_stream(gpu: ImitatedGpu, patch: Patch) -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.default_stream()):
        ones(4)


def a_tensor_of_the_host_in_a_kernel(gpu: ImitatedGpu, patch: Patch) -> None:
    ones(4) + torch.ones(4)


def a_graph_of_memory_that_another_graph_overwrote(gpu: ImitatedGpu, patch: Patch) -> None:
    """Two captures share a pool: what died in the first is the second's, and a reader of the first sees other numbers."""
    pool, static, kept = torch.cuda.graph_pool_handle(), ones(4), []
    first = capture(lambda: kept.append(static * 2), pool=pool)
    alias = kept.pop().inner
    second = capture(lambda: static.mul(3), pool=pool)
    first.replay()
    second.replay()
    raise ArithmeticError("overwritten") if alias.isnan().all() else AssertionError(str(alias))


INVENTED: dict[str, Planted] = {
    "a read that is not ordered": Planted(
        a_read_before_the_other_stream_has_written, HazardError, r"test_faults.py:\d+ .* may still be writing"
    ),
    "a write that is not ordered": Planted(
        a_write_while_another_stream_reads, HazardError, r"test_faults.py:\d+ .* may still be reading"
    ),
    "a parameter that is replaced": Planted(a_parameter_that_is_replaced_after_the_capture, HazardError, "freed at"),
    "a stream that is not joined": Planted(a_side_stream_that_is_not_joined, CaptureRefusedError, "not joined"),
    "a launch beside the capture": Planted(a_launch_beside_the_capture, CaptureRefusedError, "has not joined"),
    "a wait across the border of a capture": Planted(
        a_wait_for_work_outside_the_capture, CaptureRefusedError, "outside the capture"
    ),
    "a result before its replay": Planted(a_result_of_a_graph_read_before_its_replay, ArithmeticError, "nan"),
    "pinned memory filled too early": Planted(pinned_memory_filled_again_during_its_copy, HazardError, "be reading"),
    "numbers read too early": Planted(numbers_on_the_host_before_they_have_arrived, HazardError, "be writing"),
    "a shape from data": Planted(a_shape_that_depends_on_data, CaptureRefusedError, "reads the device"),
    "a capture on the default stream": Planted(
        a_capture_on_the_default_stream, CaptureRefusedError, "default stream cannot be captured"
    ),
    "a tensor of the host in a kernel": Planted(a_tensor_of_the_host_in_a_kernel, RuntimeError, "same device"),
    "memory that another graph overwrote": Planted(
        a_graph_of_memory_that_another_graph_overwrote, ArithmeticError, "overwritten"
    ),
}


@pytest.mark.parametrize("name", [*FOUND, *INVENTED])
def test_a_planted_fault_is_found(name: str, gpu: ImitatedGpu, monkeypatch: Patch) -> None:
    planted = (FOUND | INVENTED)[name]

    def run() -> None:
        planted.plant(gpu, monkeypatch)
        gc.collect()
        torch.cuda.set_sync_debug_mode("default")
        gpu.memory.raise_found()

    try:
        with pytest.raises(planted.error, match=planted.says):
            run()
    finally:
        gpu.sync_debug_mode = "default"
        gpu.memory.hazards.clear()


def test_a_clean_captured_step_has_none_of_them(gpu: ImitatedGpu) -> None:
    step, _ = take_steps()
    assert int(step.eager.step) == WARMUP + 3
    gpu.memory.raise_found()
