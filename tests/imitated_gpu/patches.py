"""The names of torch that the imitated GPU replaces while it runs."""

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.imitated_gpu.autocast import register_autocast
from tests.imitated_gpu.faults import CaptureRefusedError, find_line
from tests.imitated_gpu.graphs import Graph, Pool
from tests.imitated_gpu.streams import Event, Stream
from tests.imitated_gpu.tensors import DEVICE, DeviceTensor, find_tensors

PROPERTIES = SimpleNamespace(
    name="imitated GPU", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, L2_cache_size=50 << 20
)


def _indexed(device: Any) -> Any:
    """`cuda` as `cuda:0`: C++ code would ask the driver for the current device."""
    if isinstance(device, str | torch.device) and str(device) == "cuda":
        return DEVICE
    return device


def find_accumulation(outputs: Any) -> Iterator[tuple[Any, int]]:
    """The accumulation nodes that a backward pass reaches, and how many references Python has to each."""
    waiting = [t.grad_fn for t in find_tensors([outputs], []) if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "AccumulateGrad":
            yield node, sys.getrefcount(node)
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
        following = None


@functools.cache
def count_unheld_references() -> int:
    """References to a node that nobody holds but the search itself."""
    weight = torch.ones(1, requires_grad=True)
    ((_, count),) = find_accumulation(weight * 2)
    return count


def refuse_held_accumulation(outputs: Any) -> None:
    """Autograd accumulates a parameter's gradient on the stream on which its accumulation node was made. A node that
    somebody holds is older than the capture, and its stream would have to wait within the capture."""
    for _, count in find_accumulation(outputs):
        if count > count_unheld_references():
            raise CaptureRefusedError(
                "operation not permitted when stream is capturing: the accumulation node of a parameter, made before "
                f"the capture, makes its stream wait in {find_line()}"
            )


def patch_torch(gpu: Any, held: ExitStack) -> None:
    timeline = gpu.timeline
    real_to, real_tensor, real_run = Tensor.to, torch.tensor, threading.Thread.run

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if "device" in kwargs:
            kwargs["device"] = _indexed(kwargs["device"])
        args = tuple(_indexed(value) for value in args)
        if isinstance(tensor, DeviceTensor):  # C++ code would copy: it does not see that the tensor is there already
            args = tuple(value for value in args if value != DEVICE and str(value) != str(DEVICE))
            kwargs = {name: value for name, value in kwargs.items() if str(value) != str(DEVICE)}
            if not args and not kwargs.keys() - {"non_blocking"}:
                return tensor
        return real_to(tensor, *args, **kwargs)

    def tensor(data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        made = real_tensor(data, dtype=dtype, **options)
        return made if device is None else made.to(device)

    def run_thread(thread: threading.Thread) -> None:
        from tests.imitated_gpu.device import Mode

        torch.autograd.set_multithreading_enabled(False)
        with Mode(gpu):
            real_run(thread)

    @contextmanager
    def use_stream(stream: Stream | None) -> Iterator[None]:
        before = timeline.current()
        timeline.set_current(stream or before)
        try:
            yield
        finally:
            timeline.set_current(before)

    @contextmanager
    def capture(
        graph: Graph, pool: Pool | None = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        gpu.timeline.synchronize()
        before, used = timeline.current(), pool or Pool()
        timeline.set_current(stream or timeline.make("capture"))
        gpu.begin_capture(graph, used, capture_error_mode)
        used.open()
        try:
            yield
            gpu.end_capture(failed=False)
        except CaptureRefusedError:  # CUDA cannot end what it refused: torch leaves the stream and the pool as they are
            if gpu.capture is graph:
                gpu.end_capture(failed=True)
            raise
        except BaseException:  # of Python alone; the graph ends, and goes with the error
            gpu.end_capture(failed=True)
            used.close()
            used.release()
            timeline.set_current(before)
            raise
        used.close()
        timeline.set_current(before)

    def differentiate(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if gpu.is_capturing():
                refuse_held_accumulation(outputs)
            return real(outputs, *args, **kwargs)

        return call

    def make_graph(*args: Any, **kwargs: Any) -> Graph:
        gpu.graphs.append(Graph(gpu))
        made: Graph = gpu.graphs[-1]
        return made

    def make_stream(device: Any = None, priority: int = 0, **options: Any) -> Stream:
        made: Stream = timeline.make()
        return made

    def set_sync_debug_mode(mode: str) -> None:
        gpu.sync_debug_mode = mode

    @contextmanager
    def use_device(device: Any) -> Iterator[None]:
        yield

    names: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": use_device,
        "device_of": lambda tensor: nullcontext(),
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "get_device_properties": lambda device=None: PROPERTIES,
        "mem_get_info": lambda device=None: (PROPERTIES.total_memory - gpu.memory.live, PROPERTIES.total_memory),
        "memory_allocated": lambda device=None: gpu.memory.live,
        "memory_reserved": lambda device=None: gpu.memory.peak,
        "max_memory_allocated": lambda device=None: gpu.memory.peak,
        "max_memory_reserved": lambda device=None: gpu.memory.peak,
        "reset_peak_memory_stats": lambda device=None: setattr(gpu.memory, "peak", gpu.memory.live),
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: timeline.synchronize(),
        "Stream": make_stream,
        "Event": lambda *args, **options: Event(timeline),
        "current_stream": lambda device=None: timeline.current(),
        "default_stream": lambda device=None: timeline.default,
        "set_stream": timeline.set_current,
        "stream": use_stream,
        "CUDAGraph": make_graph,
        "graph": capture,
        "graph_pool_handle": Pool,
        "is_current_stream_capturing": lambda: gpu.is_capturing(),
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: gpu.sync_debug_mode,
    }
    for name, value in names.items():
        held.enter_context(patch.object(torch.cuda, name, value))
    held.enter_context(patch.object(torch._C, "_cuda_endAllocateToPool", lambda device, pool: pool.close()))
    held.enter_context(patch.object(torch._C, "_cuda_releasePool", lambda device, pool: pool.release()))
    for name in ("is_available", "device_count", "synchronize", "current_stream", "set_stream"):
        held.enter_context(patch.object(torch.accelerator, name, names[name]))
    held.enter_context(patch.object(torch.accelerator, "current_device_index", names["current_device"]))
    held.enter_context(patch.object(Tensor, "to", to))
    held.enter_context(patch.object(Tensor, "cuda", lambda t, *_, **k: to(t, DEVICE, **k)))
    held.enter_context(patch.object(Tensor, "pin_memory", lambda t, *_: gpu.pin(t)))
    held.enter_context(patch.object(Tensor, "is_pinned", lambda t, *_: gpu.is_pinned(t)))
    held.enter_context(patch.object(torch, "tensor", tensor))
    for name in ("grad", "backward"):
        held.enter_context(patch.object(torch.autograd, name, differentiate(getattr(torch.autograd, name))))
    held.enter_context(patch.object(threading.Thread, "run", run_thread))
    _set_for_block(held, torch.__future__.set_overwrite_module_params_on_conversion, False, True)
    _set_for_block(held, torch.autograd.set_multithreading_enabled, True, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held.callback(register_autocast()._destroy)


def _set_for_block(held: ExitStack, setter: Callable[[bool], object], after: bool, during: bool) -> None:
    setter(during)
    held.callback(setter, after)


__all__ = ["DeviceTensor", "patch_torch"]
