"""What a GPU may still read is kept; who makes batches and who reads them are ordered."""

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastmpl.data.device_stream import KeepAlive, Loans, MakingStream, upload
from fastmpl.data.prefetch import Prefetcher
from tests.data.recorded_cuda import RecordedCuda, RecordedStream

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Pictures:
    """An item whose memory is another's."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> RecordedCuda:
    return RecordedCuda(monkeypatch)


def lend(loans: Loans[Pictures]) -> Callable[[], Pictures | None]:
    """Lends new pictures, which the reader drops at once; says whether anyone else still has them."""
    return weakref.ref(loans.lend(Pictures()))


def test_an_item_is_kept_until_the_gpu_has_read_it(cuda: RecordedCuda) -> None:
    loans = Loans[Pictures](GPU)
    first = lend(loans)
    assert cuda.events == []  # the reader has not asked for the next: nothing says yet that it is done
    lend(loans)
    lend(loans)
    assert first() is not None
    for event in cuda.events:
        event.passed = True
    lend(loans)
    assert first() is None


def test_the_event_is_of_the_stream_that_reads_and_of_the_time_when_the_next_item_is_asked_for(
    cuda: RecordedCuda,
) -> None:
    loans = Loans[Pictures](GPU)
    with cuda.stream(RecordedStream("loading")):
        loans.lend(Pictures())
    assert cuda.log == []
    loans.lend(Pictures())
    assert cuda.log == ["event on loading"]


def test_at_the_end_the_host_waits_for_all_reads(cuda: RecordedCuda) -> None:
    loans = Loans[Pictures](GPU)
    last = [lend(loans) for _ in range(3)][-1]
    cuda.log.clear()
    loans.end()
    assert cuda.log == ["event on default", *["host waits for default"] * 3]
    assert last() is None


def test_whoever_is_forgotten_waits_as_well(cuda: RecordedCuda) -> None:
    kept = KeepAlive(GPU)
    kept.keep(Pictures())
    del kept
    gc.collect()
    assert cuda.log[-1] == "host waits for default"
    ahead = Prefetcher(Pictures, 1, GPU)
    ahead.next()
    cuda.log.clear()
    del ahead
    gc.collect()
    assert "host waits for default" in cuda.log


def test_items_are_made_on_a_stream_of_their_own_and_given_when_the_gpu_has_made_them(cuda: RecordedCuda) -> None:
    ahead = Prefetcher(lambda: torch.cuda.current_stream().name, 1, GPU)
    assert ahead.next() == "created 1"
    assert cuda.log[:2] == ["event on created 1", "host waits for created 1"]
    ahead.close()


def test_a_failing_maker_leaves_the_stream(cuda: RecordedCuda) -> None:
    def fail() -> None:
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        MakingStream(GPU).make(fail)
    assert torch.cuda.current_stream().name == "default"


def test_a_cpu_needs_none_of_it(cuda: RecordedCuda) -> None:
    loans = Loans[Pictures](CPU)
    first = lend(loans)
    assert first() is None
    loans.end()
    KeepAlive(CPU).keep(Pictures())
    assert MakingStream(CPU).make(lambda: torch.cuda.current_stream().name) == "default"
    numbers = np.arange(3)
    assert np.shares_memory(upload(numbers, CPU).numpy(), numbers)
    assert cuda.log == []


def test_an_array_reaches_a_gpu_from_pinned_memory_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, object]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(("pin", None)) or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device, non_blocking: asked.append((device, non_blocking)) or tensor
    )
    upload(np.arange(3), GPU)
    assert asked == [("pin", None), (GPU, True)]
