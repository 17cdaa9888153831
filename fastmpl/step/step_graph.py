"""Executes the step as one CUDA graph: captured once on static buffers, then replayed without the host.

A step of two small networks has more than a thousand launches; a replay is one. Everything that varies from step to step
(rates, ramps, keys, the number of the step) is a tensor on the device. A replay is therefore bit for bit the step that
eager execution would take. State is loaded in place, which keeps the captured addresses valid.
`fastmpl.analysis.fake_run` tells without a GPU whether a step can be captured.

Three streams are used. The loading stream prepares and transfers the next batch (`load_next`) during the replay of the
step before. The capture stream runs the warm-up steps and the capture, which CUDA does not allow on the default stream.
The stream of the caller fills the static inputs and replays.

A replay is one launch, so that nothing else would keep the host from being many steps ahead of the device. All their
batches would lie in the device's memory, and a run that is asked to stop would have to take all these steps first. After
each step the host therefore waits for the end of an earlier one (`AHEAD`), with the steps after it still queued.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from fastmpl.data.batch import IMAGES, Batch
from fastmpl.errors import ConfigError
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_metrics import StepMetrics

WARMUP: Final = 11  # eager steps before the capture: libraries choose algorithms, all-reduces choose buckets

AHEAD: Final = 2  # steps that are queued or running while the host prepares the next one

GiveUp = Callable[[str], None]  # told why a step cannot be captured
Agree = Callable[[str], str]  # told why this rank cannot capture ("" where it has), gives the reason of any rank


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

    The next step overwrites the metrics that a call returns. All ranks capture at the same step, and none replays what
    another could not capture: NCCL asks for the same kind of call on all ranks. A step that cannot be captured leaves the
    state as it was before that step, and raises CaptureError or goes on eagerly (`give_up`).
    """

    def __init__(
        self,
        eager: EagerStep,
        device: torch.device,
        images: torch.dtype | None = None,
        *,
        give_up: GiveUp | None = None,
        agree: Agree = lambda reason: reason,
    ) -> None:
        """images: the dtype of pictures in the static inputs, which the copy converts to; None keeps the dtype. give_up: is
        called once with the reason if the step cannot be captured; that step and all later ones are then eager. With None
        such a step raises CaptureError. agree: asks the other ranks.
        """
        self.eager, self.device, self._images, self._give_up = eager, device, images, give_up
        self._agree = agree
        self._captures = True
        self._pool: Any = None  # of all graphs; made for the first
        self._queued: deque[torch.cuda.Event] = deque()  # the ends of the last steps
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
        self._wait_for_earlier_step()
        return metrics

    def close(self) -> None:
        """Destroys the graphs; later steps are eager.

        NCCL ends no group while a graph holds its collectives, and an error that is on its way keeps a step alive.
        """
        self._captures = False
        for captured in self._captured.values():
            captured.graph.reset()
        self._captured.clear()

    def _wait_for_earlier_step(self) -> None:
        """Lets the host be AHEAD steps ahead of the device, and not more."""
        ended = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # the host sleeps while it waits
        ended.record()
        self._queued.append(ended)
        if len(self._queued) > AHEAD:
            self._queued.popleft().synchronize()

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
        between = self.eager.is_between
        failure: CaptureError | None = None
        try:
            self._captured[between] = self._capture(inputs)
        except CaptureError as error:
            failure = error
        reason = self._agree(failure.reason if failure is not None else "")
        if not reason:
            return
        self._captured.pop(between, None)
        if self._give_up is None:
            raise failure or CaptureError.because(RuntimeError(f"on another rank: {reason}"))
        failure = None  # with its traceback, which keeps tensors of the step
        self._captures = False
        self._give_up(reason)
        _free_pool(self._pool)

    def _capture(self, inputs: Batch) -> _Captured:
        """Records the step without executing it: no state changes. Raises CaptureError."""
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        first: Exception | None = None
        try:
            # The outer block makes the caller's stream the current one again: torch does not where a capture ends badly.
            # Only calls of this thread may end the capture: NCCL's watchdog and a loader's thread call CUDA meanwhile.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    return _Captured(graph, self.eager.execute(inputs))
                except Exception as error:
                    first = error  # the end of a capture that failed raises an error that names no cause
                    raise
        except Exception as error:  # of CUDA, of its libraries, or of a compiler: each means that there is no graph
            raise CaptureError.because(first or error) from error
        finally:
            first = None  # its traceback refers to this call: the two would keep the step's tensors

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


def _free_pool(pool: Any) -> None:
    """Gives back the memory that a failed capture has taken: nearly that of a whole step, which is taken eagerly next.

    CUDA does not end a capture that an operation has made invalid. torch then neither releases its pool nor, from then on,
    frees cached memory for an allocation that finds no room.
    """
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:  # the capture did end, and the pool went with its graph
        pass
    else:
        torch._C._cuda_releasePool(device, pool)
    torch.cuda.empty_cache()
