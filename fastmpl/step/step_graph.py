"""The same step as one CUDA graph: captured once on static buffers, replayed with no host in between.

A step of two small networks is a thousand launches and more; replayed, it is one. What varies from step to step is on
the device already (rates, ramps, keys, the step's number), so that a replay is the step that eager execution would have
taken, bit for bit. `fastmpl.analysis.fake_run` tells without a GPU whether a configuration's step can be captured.

Three streams. The loader's work and its transfers run on one of their own (`loaded`), beside the replay of the step
before; the warm-up and the capture run on a second, as captures must; the caller's stream replays, and fills the static
inputs between two replays.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from fastmpl.data.batch import IMAGES, Batch
from fastmpl.errors import ConfigError
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_keys import Report

WARMUP: Final = 11  # eager steps before the capture: libraries choose their algorithms, all-reduces their buckets


class CaptureError(ConfigError):
    """A step could not be captured, or a batch does not fit the captured one."""


class GraphedStep:
    """Calls like an EagerStep, whose state it shares. The first steps are taken eagerly, on the stream of the capture.

    The report's tensors are overwritten by the next step. On several ranks all capture at the same step. There is no
    way back to eager execution: a step that cannot be captured raises CaptureError.
    """

    def __init__(self, eager: EagerStep, device: torch.device, images: torch.dtype | None = None) -> None:
        """images: the type that the step reads pictures in, which the copy into the inputs makes; None: as they come."""
        self.eager, self.device, self._images = eager, device, images
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._loading = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._taken = 0
        self._inputs: Batch | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._report: Report | None = None

    def loaded(self, following: Callable[[], Batch]) -> Batch:
        """The next batch on the device, made and sent while the step before is still running."""
        with torch.cuda.stream(self._loading):
            return following().to(self.device)

    def __call__(self, batch: Batch) -> Report:
        """One step on a batch that `loaded` gave, or that is on the host."""
        inputs = self._filled(self.loaded(lambda: batch))
        if self._taken < WARMUP:
            self._taken += 1
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                report = self.eager(inputs)
            current.wait_stream(self._stream)
            return report
        if self._graph is None or self._report is None:
            self._graph, self._report = self._captured(inputs)
        self._graph.replay()
        return self._report

    def _captured(self, inputs: Batch) -> tuple[torch.cuda.CUDAGraph, Report]:
        """The step's record; it is not taken, so no state moves."""
        graph = torch.cuda.CUDAGraph()
        try:
            # beside a loader's pinned-memory thread and NCCL's watchdog, only what this thread calls may break it
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                return graph, self.eager(inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CaptureError(
                f'The step cannot be captured as a CUDA graph ({reason}). Set system.graph = "off", and call '
                "fastmpl check, which names what stands in the way."
            ) from error

    def _filled(self, arrived: Batch) -> Batch:
        """The static inputs with the contents of a batch that was made on the loading stream."""
        current = torch.cuda.current_stream()
        current.wait_stream(self._loading)
        if self._inputs is None:
            self._inputs = Batch(*map(self._static, Batch._fields, arrived))  # type: ignore[arg-type]
            return self._inputs
        for name, static, part in zip(Batch._fields, self._inputs, arrived, strict=True):
            if static is None or part is None or static.shape != part.shape:
                if static is part:
                    continue
                found, expected = ("none" if x is None else tuple(x.shape) for x in (part, static))
                raise CaptureError(
                    f"A batch's {name} has the shape {found} where the first batch had {expected}: a captured step "
                    'needs the same shapes always. Set system.graph = "off".'
                )
            part.record_stream(current)  # else its memory could be the next batch's before it is read
            static.copy_(part)
        return self._inputs

    def _static(self, name: str, part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        return part.to(self._images if name in IMAGES and self._images else part.dtype, copy=True)

    @property
    def step(self) -> Tensor:
        return self.eager.step

    def state(self) -> dict[str, Tensor]:
        return self.eager.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """In place: the captured addresses stay."""
        self.eager.load(state)
