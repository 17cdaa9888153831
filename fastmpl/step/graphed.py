"""The same step as one CUDA graph: captured once on static buffers, replayed with no host in between.

A step of two small networks is a thousand launches and more; replayed, it is one. What varies from step to step is on
the device already (rates, ramps, keys, the step's number), so that a replay is the step that eager execution would have
taken, bit for bit. `fastmpl.capture` tells on a machine with no GPU whether a configuration's step can be captured.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.step.eager import EagerStep
from fastmpl.step.moment import Report

WARMUP: Final = 11  # eager steps before the capture: libraries choose their algorithms, all-reduces their buckets


class GraphedStep:
    """Calls like an EagerStep, whose state it shares. The first steps are taken eagerly, on the stream of the capture.

    The report's tensors are overwritten by the next step. Batches must keep their shapes; one that does not is refused.
    """

    def __init__(self, eager: EagerStep, device: torch.device) -> None:
        self.eager = eager
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._taken = 0
        self._inputs: Batch | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._report: Report | None = None

    def __call__(self, batch: Batch) -> Report:
        """One step. The batch's tensors may be on the host (pinned) or the device."""
        self._copy_in(batch)
        assert self._inputs is not None
        if self._taken < WARMUP:
            self._taken += 1
            with torch.cuda.stream(self._stream):
                report = self.eager(self._inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            return report
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        assert self._report is not None
        self._graph.replay()
        return self._report

    def _capture(self) -> None:
        """Records the step; it is not taken, so no state moves."""
        assert self._inputs is not None
        graph = torch.cuda.CUDAGraph()
        # beside a loader's pinned-memory thread, only what this thread calls may break the capture
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._report = self.eager(self._inputs)
        self._graph = graph

    def _copy_in(self, batch: Batch) -> None:
        """Fills the static inputs: transfers overlap the replay before, the last hop waits for it."""
        if self._inputs is None:
            device = self._stream.device
            self._inputs = Batch(*(None if part is None else part.to(device).clone() for part in batch))  # type: ignore[arg-type]
            self._stream.wait_stream(torch.cuda.current_stream())
            return
        current = torch.cuda.current_stream()
        with torch.cuda.stream(self._copies):
            arrived = batch.to(self._stream.device)
        current.wait_stream(self._copies)
        for static, part in zip(self._inputs, arrived, strict=True):
            if static is None or part is None:
                assert static is part, "a batch has other parts than the first one"
                continue
            assert static.shape == part.shape, (
                f"a batch of {tuple(part.shape)} where {tuple(static.shape)} was captured"
            )
            part.record_stream(current)
            static.copy_(part)
        self._stream.wait_stream(current)

    @property
    def step(self) -> Tensor:
        return self.eager.step

    def state(self) -> dict[str, Tensor]:
        return self.eager.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """In place: the captured addresses stay."""
        self.eager.load(state)
