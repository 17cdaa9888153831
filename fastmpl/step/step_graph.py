"""Executes the step as one CUDA graph: captured once on static buffers, then replayed without the host.

A step of two small networks has more than a thousand launches; a replay is one. Everything that varies from step to step
(rates, ramps, keys, the number of the step) is a tensor on the device. A replay is therefore bit for bit the step that
eager execution would take. State is loaded in place, which keeps the captured addresses valid.
`fastmpl.analysis.fake_run` tells without a GPU whether a step can be captured.

Three streams are used. The loading stream prepares and transfers the next batch (`load_next`) during the replay of the
step before. The capture stream runs the warm-up steps and the capture, which CUDA does not allow on the default stream.
The stream of the caller fills the static inputs and replays.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastmpl.data.batch import IMAGES, Batch
from fastmpl.errors import ConfigError
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_metrics import StepMetrics

WARMUP: Final = 11  # eager steps before the capture: libraries choose algorithms, all-reduces choose buckets

GiveUp = Callable[[str], None]  # told why a step cannot be captured


class CaptureError(ConfigError):
    """A step cannot be captured, or a batch does not fit the captured step. `reason` is the first line of the cause."""

    reason = ""

    @classmethod
    def because(cls, cause: Exception) -> "CaptureError":
        """The error for a step whose capture raised `cause`."""
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        made = cls(
            f'The step cannot be captured as a CUDA graph ({reason}). Set system.graph = "off", and call fastmpl check, '
            "which names what stands in the way."
        )
        made.reason = reason
        return made


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    metrics: StepMetrics  # what a replay writes


class GraphedStep:
    """Called like the EagerStep `eager`, which holds the state. The first WARMUP steps are eager.

    Both kinds of steps (`EagerStep.is_between`) have a graph and WARMUP eager steps of their own. The two graphs share
    their memory, since one of them runs at a time and neither reads what the other made.

    The next step overwrites the metrics that a call returns. All ranks capture at the same step. A step that cannot be
    captured leaves the state as it was before that step, and raises CaptureError or goes on eagerly (`give_up`).
    """

    def __init__(
        self,
        eager: EagerStep,
        device: torch.device,
        images: torch.dtype | None = None,
        *,
        give_up: GiveUp | None = None,
    ) -> None:
        """images: the dtype of pictures in the static inputs, which the copy converts to; None keeps the dtype. give_up: is
        called once with the reason if the step cannot be captured; that step and all later ones are then eager. With None
        such a step raises CaptureError.
        """
        self.eager, self.device, self._images, self._give_up = eager, device, images, give_up
        self._captures = True
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._loading = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._taken: Counter[bool] = Counter()  # eager steps, by `is_between`
        self._inputs: Batch | None = None
        self._captured: dict[bool, _Captured] = {}  # by `is_between`

    def load_next(self, following: Callable[[], Batch]) -> Batch:
        """Prepares the next batch on the device, on the loading stream, while the step before is still running."""
        with torch.cuda.stream(self._loading):
            return following().to(self.device)

    def __call__(self, batch: Batch) -> StepMetrics:
        """Takes one step on a batch from `load_next`, or on a batch in host memory."""
        inputs = self._fill_inputs(self.load_next(lambda: batch))
        between = self.eager.is_between
        if self._captures and between not in self._captured and self._taken[between] >= WARMUP:
            self._try_to_capture(inputs)
        captured = self._captured.get(between)
        if captured is None:
            metrics = self._take_eagerly(inputs)
        else:
            captured.graph.replay()
            metrics = captured.metrics
        self.eager.taken += 1
        return metrics

    def _take_eagerly(self, inputs: Batch) -> StepMetrics:
        """One step without a graph, on the stream of the capture."""
        self._taken[self.eager.is_between] += 1
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            metrics = self.eager.execute(inputs)
        current.wait_stream(self._stream)
        return metrics

    def _try_to_capture(self, inputs: Batch) -> None:
        """Captures the step, or gives up for good. Raises CaptureError if nobody wants to go on without."""
        try:
            self._captured[self.eager.is_between] = self._capture(inputs)
        except CaptureError as error:
            if self._give_up is None:
                raise
            self._captures = False
            self._give_up(error.reason)

    def _capture(self, inputs: Batch) -> _Captured:
        """Records the step without executing it: no state changes. Raises CaptureError."""
        graph = torch.cuda.CUDAGraph()
        pool = next((other.graph.pool() for other in self._captured.values()), None)
        first: Exception | None = None
        try:
            # only calls of this thread may end the capture: NCCL's watchdog and a loader's thread call CUDA meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    return _Captured(graph, self.eager.execute(inputs))
                except Exception as error:
                    first = error  # the end of a capture that failed raises an error that names no cause
                    raise
        except Exception as error:  # of CUDA, of its libraries, or of a compiler: each means that there is no graph
            raise CaptureError.because(first or error) from error

    def _fill_inputs(self, arrived: Batch) -> Batch:
        """Copies a batch that was made on the loading stream into the static inputs, and returns these."""
        current = torch.cuda.current_stream()
        current.wait_stream(self._loading)
        if self._inputs is None:
            self._inputs = Batch(*map(self._make_static, Batch._fields, arrived))  # type: ignore[arg-type]
            self._loading.wait_stream(current)
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
            static.copy_(part)
        self._loading.wait_stream(current)  # fastmpl.data.device_stream: the next batch is asked for after these reads
        return self._inputs

    def _make_static(self, name: str, part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        return part.to(self._images if name in IMAGES and self._images else part.dtype, copy=True)
