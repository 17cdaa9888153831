"""The imitated GPU: within `with ImitatedGpu() as gpu:` torch.cuda has one device, and `cuda` tensors compute on the CPU.

Every operator runs at once, in the order of the host; what a GPU would do in another order is found by the clocks of
`streams`, and said by HazardError with the lines of both uses. `graphs` has captures, `dali` the outputs of DALI,
`patches` the names of torch that are replaced.
"""

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.imitated_gpu import graphs
from tests.imitated_gpu.faults import CaptureRefusedError, HazardError, HostWaitError, find_line
from tests.imitated_gpu.graphs import Call, Graph, Pool
from tests.imitated_gpu.memory import Block, Memory
from tests.imitated_gpu.operators import (
    CONVOLUTIONS,
    COPIES,
    HOST_READS,
    INDEXED,
    PRODUCTS,
    aten,
    launches,
    list_written,
    round_to_tf32,
)  # fmt: skip
from tests.imitated_gpu.streams import Clock, Event, Stamp, Stream, Timeline
from tests.imitated_gpu.tensors import DEVICE, DeviceTensor, find_tensors, unwrap

_ON_DEVICE = ("cuda", "meta")  # C++ code asks for `meta` when it asks for the device of a DeviceTensor
_running: list["ImitatedGpu"] = []


def running() -> "ImitatedGpu":
    return _running[-1]


class GpuTimeline(Timeline):
    """The streams, with the rules of captures."""

    def __init__(self, gpu: "ImitatedGpu") -> None:
        self.gpu: ImitatedGpu | None = None
        super().__init__(DEVICE)
        self.gpu = gpu

    def block_host(self, clock: Clock, what: str, *, is_watched: bool = True) -> None:
        gpu = self.gpu
        assert gpu is not None
        gpu.check_no_capture(f"waits for {what}")
        if is_watched and gpu.sync_debug_mode == "error":
            raise HostWaitError(f"{find_line()} waits for {what}")
        gpu.host_waits.append((find_line(), what, threading.current_thread().name))
        super().block_host(clock, what, is_watched=is_watched)
        gpu.memory.raise_found()

    def check_wait(self, stream: Stream, event: Event) -> None:
        assert self.gpu is not None
        graphs.check_wait(self.gpu.capture, stream, event)

    def capture_of(self, stream: Stream) -> object:
        capture = self.gpu.capture if self.gpu else None
        return capture if capture is not None and stream.number in capture.streams else None


class Mode(TorchDispatchMode):
    def __init__(self, gpu: "ImitatedGpu") -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.dispatch(func, args, kwargs or {})


class ImitatedGpu:
    """`host_waits` lists (line, what, thread) of every wait of the host; `graphs` the graphs that were made."""

    def __init__(self) -> None:
        self.timeline = GpuTimeline(self)
        self.memory = Memory(self.timeline.host)
        self.capture: Graph | None = None
        self.capture_mode = "global"
        self.capture_thread = 0
        self.graphs: list[Graph] = []
        self.host_waits: list[tuple[str, str, str]] = []
        self.sync_debug_mode = "default"
        self.kernels: dict[Any, Callable[..., Any]] = {}  # operators that are run in another way
        self.watchers: list[Callable[[Any, Stream], None]] = []  # told every launch
        self._pinned: dict[int, weakref.ref[Any]] = {}
        self._pending: dict[int, tuple[weakref.ref[Any], Stamp, str]] = {}  # host memory that a stream reads or writes
        self._lock = threading.RLock()
        self._held = ExitStack()

    def __enter__(self) -> Self:
        from tests.imitated_gpu.patches import patch_torch

        _running.append(self)
        patch_torch(self, self._held)
        self._held.enter_context(Mode(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.collect()  # what a cycle holds ends while there still is a device
        self._held.close()
        _running.remove(self)
        if kind is None:
            self.memory.raise_found()

    # memory -----------------------------------------------------------------------------------------------------------

    def wrap(self, inner: Tensor, block: Block | None = None) -> DeviceTensor:
        """A device tensor of a CPU tensor's memory, which is new unless it is known."""
        block = block or self.memory.find(inner)
        if block is None:
            capture, stream = self._own_capture(), self.timeline.current()
            block = self.memory.add(inner, stream, capture and capture.pool_, find_line())
            if capture is not None:
                capture.made.append(block)
                capture.own.add(id(block))
        made = DeviceTensor(inner, block)
        self.memory.share(made, block)
        return made

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy in pinned memory."""
        if self._own_capture() is not None:
            raise CaptureRefusedError(f"operation not permitted when stream is capturing: {find_line()} pins memory")
        copy = tensor.clone()
        self._pinned[copy.untyped_storage()._cdata] = weakref.ref(copy.untyped_storage())
        return copy

    def is_pinned(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        found = self._pinned.get(storage._cdata)
        return found is not None and found() is storage

    # captures ---------------------------------------------------------------------------------------------------------

    def _own_capture(self) -> Graph | None:
        """The capture that this thread's current stream takes part in."""
        capture = self.capture
        return capture if capture is not None and self.timeline.current().number in capture.streams else None

    def is_capturing(self) -> bool:
        """Whether the current stream is captured."""
        return self._own_capture() is not None

    def check_no_capture(self, does: str) -> None:
        """Raises where a capture forbids what this thread does."""
        if self.capture is None:
            return
        if self.capture_mode == "global" or threading.get_ident() == self.capture_thread:
            raise CaptureRefusedError(f"operation not permitted when stream is capturing: {find_line()} {does}")

    def begin_capture(self, graph: Graph, pool: Pool | None, mode: str) -> None:
        if self.capture is not None:
            raise CaptureRefusedError("operation not permitted: a capture is running")
        stream = self.timeline.current()
        if stream is self.timeline.default:
            raise CaptureRefusedError("operation not permitted: the default stream cannot be captured")
        graph.begin(pool, stream)
        self.capture, self.capture_mode, self.capture_thread = graph, mode, threading.get_ident()

    def end_capture(self, *, failed: bool) -> None:
        graph, stream = self.capture, self.timeline.current()
        assert graph is not None
        self.capture = None
        unjoined = [
            other.name
            for other in self.timeline.streams
            if other.number in graph.streams and other.clock.get(other.number, 0) > stream.clock.get(other.number, 0)
        ]
        graph.end(failed=failed or bool(unjoined))
        if unjoined and not failed:
            raise CaptureRefusedError(f"capture has work that was not joined: of the {unjoined[0]} stream")

    # operators --------------------------------------------------------------------------------------------------------

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        asked = kwargs.get("device")
        given = find_tensors((*args, *kwargs.values()), [])
        of_device = [t for t in given if isinstance(t, DeviceTensor)]
        makes = asked is not None and torch.device(asked).type in _ON_DEVICE
        if not of_device and not makes:
            return self._on_host(func, args, kwargs, given)
        with self._lock:
            return self._on_device(func, args, kwargs, given, of_device)

    def _on_host(self, func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        pins = kwargs.pop("pin_memory", None) if "pin_memory" in kwargs else None
        for tensor in given if self._pending else ():
            self._check_host_use(tensor, writes=bool(list_written(func)[0]) and tensor is given[0])
        out = func(*args, **kwargs)
        return self.pin(out) if pins else out

    def _check_host_use(self, tensor: Tensor, *, writes: bool) -> None:
        key = tensor.untyped_storage()._cdata
        found = self._pending.get(key)
        if found is None:
            return
        storage, stamp, does = found
        if storage() is not tensor.untyped_storage() or stamp.is_before(self.timeline.host):
            del self._pending[key]
        elif writes or does == "writing":
            raise HazardError(f"{find_line()} uses host memory that {stamp} may still be {does}.")

    def _on_device(
        self, func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor], of_device: list[DeviceTensor]
    ) -> Any:
        if func in COPIES:
            return self._copy(func, args, kwargs)
        if func in HOST_READS or (func is aten.index.Tensor and _asks_for_a_shape(args[1])):
            self._wait(f"the answer of {func}", func, of_device)
        elif len(given) > len(of_device):
            self._check_devices(func, given)
        if func is aten._efficientzerotensor.default:  # the tangent of a constant, of which a kernel knows that it is 0
            if not args[0]:  # of a number
                return func(*args, **{**kwargs, "device": torch.device("cpu")})
            func = aten.zeros.default
        inner_kwargs = {name: unwrap(value) for name, value in kwargs.items()}
        if "device" in inner_kwargs:
            inner_kwargs["device"] = torch.device("cpu")
        inner_kwargs.pop("pin_memory", None)
        inner_args = tuple(unwrap(value) for value in args)
        if func.namespace == "fastmpl":  # the native kernels stand in for the Triton ones (see `triton_launches`)
            inner_args = tuple(
                "native" if isinstance(value, str) and value == "triton" else value for value in inner_args
            )
        run = self.kernels.get(func, func)
        if func in CONVOLUTIONS or func in PRODUCTS:
            run = _of_one_type(run)
        if (func in CONVOLUTIONS and torch.backends.cudnn.allow_tf32) or (
            func in PRODUCTS and torch.backends.cuda.matmul.allow_tf32
        ):
            run = _rounded(run)
        return self.launch(run, func, inner_args, inner_kwargs, args, kwargs, of_device)

    def launch(
        self, run: Any, func: Any, inner_args: Any, inner_kwargs: Any, args: Any, kwargs: Any, of_device: list[Any]
    ) -> Any:
        """Runs an operator as a kernel of the current stream."""
        stream, capture = self.timeline.current(), self._own_capture()
        kernel = launches(func)
        if kernel and capture is None and self.capture is not None and threading.get_ident() == self.capture_thread:
            raise CaptureRefusedError(
                f"{find_line()} launches {func} on the {stream.name} stream, which has not joined the capture"
            )
        positions, names = list_written(func)
        written = find_tensors([args[i] for i in positions if i < len(args)] + [kwargs.get(n) for n in names], [])
        writes = list({id(t.block): t.block for t in written if isinstance(t, DeviceTensor)}.values())
        reads = list({id(t.block): t.block for t in of_device}.values())
        if capture is not None:
            capture.enter([*reads, *writes])
        stamp = self._order(reads, writes, stream) if kernel else None
        call = Call(run, inner_args, inner_kwargs, [])
        if capture is not None and (kernel or not func.is_view):
            capture.note(call, reads, writes)
        out = run(*inner_args, **inner_kwargs)
        call.out.extend(find_tensors(out, []))
        for watcher in self.watchers if kernel else ():
            watcher(func, stream)
        return self._wrap_results(out, of_device, stamp)

    def _order(self, reads: list[Block], writes: list[Block], stream: Stream) -> Stamp:
        self.memory.raise_found()
        stamp = stream.launch(find_line())
        for block in reads:
            if not any(block is w for w in writes):
                block.read(stamp, stream.clock)
        for block in writes:
            block.write(stamp, stream.clock)
        return stamp

    def _wrap_results(self, out: Any, given: list[Any], stamp: Stamp | None) -> Any:
        if isinstance(out, Tensor):
            for tensor in given:
                if tensor.inner is out:
                    return tensor
            made = self.wrap(out)
            if stamp is not None and made.block.writer is None:
                made.block.writer = stamp
            return made
        if isinstance(out, list | tuple):
            return type(out)([self._wrap_results(item, given, stamp) for item in out])
        return out

    def _wait(self, what: str, func: Any, tensors: list[Any]) -> None:
        """The host reads what the current stream gives it."""
        stream = self.timeline.current()
        self.check_no_capture(f"reads the device ({func})")
        self._order([t.block for t in tensors], [], stream)
        self.timeline.block_host(stream.clock, what)

    @staticmethod
    def _check_devices(func: Any, given: list[Tensor]) -> None:
        host = [t for t in given if not isinstance(t, DeviceTensor) and t.dim()]
        if host and func not in INDEXED:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found cpu and cuda:0 (when calling {func})"
            )

    # copies -----------------------------------------------------------------------------------------------------------

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """copy_ and _to_copy between host and device, or within the device."""
        if func is aten.copy_.default:
            target, source = args[0], args[1]
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            return self._copy_into(target, source, blocking=blocking)
        source, kwargs = args[0], dict(kwargs)
        asked = kwargs.pop("device", None)
        blocking, pins = not kwargs.pop("non_blocking", False), kwargs.pop("pin_memory", None)
        to_device = isinstance(source, DeviceTensor) if asked is None else torch.device(asked).type in _ON_DEVICE
        if isinstance(source, DeviceTensor) and to_device:
            return self.launch(func, func, (source.inner,), kwargs, args, kwargs, [source])
        if to_device:
            target = self.wrap(aten.empty_like.default(source, **kwargs))
            return self._copy_into(target, source, blocking=blocking)
        assert isinstance(source, DeviceTensor)
        kept = torch.empty_like(source.inner, **kwargs)
        return self._copy_into(self.pin(kept) if pins else kept, source, blocking=blocking)

    def _copy_into(self, target: Tensor, source: Tensor, *, blocking: bool) -> Tensor:
        here, there = isinstance(target, DeviceTensor), isinstance(source, DeviceTensor)
        if here and (there or source.dim() == 0):
            tensors = [t for t in (target, source) if isinstance(t, DeviceTensor)]
            inner = (unwrap(target), unwrap(source))
            made: Tensor = self.launch(aten.copy_.default, aten.copy_.default, inner, {}, (target, source), {}, tensors)
            return made
        host = source if here else target
        pinned = self.is_pinned(host)
        if not pinned or blocking:
            self.check_no_capture("copies between pageable memory and the device" if not pinned else "copies and waits")
        self._check_host_use(host, writes=there)
        inner = (unwrap(target), unwrap(source))
        tensors = [t for t in (target, source) if isinstance(t, DeviceTensor)]
        stream, capture = self.timeline.current(), self._own_capture()
        if here and capture is not None:
            capture.host_reads.append((weakref.ref(host.untyped_storage()), find_line()))
        line = find_line()
        if here:
            self.launch(aten.copy_.default, aten.copy_.default, inner, {}, (target, source), {}, tensors)
        else:
            self._order([tensors[0].block], [], stream)
            target.copy_(inner[1])
        if blocking or (there and not pinned):
            self.timeline.block_host(stream.clock, "a copy")
        elif pinned:
            stamp = Stamp(stream.number, stream.clock[stream.number], stream.name, line)
            storage = host.untyped_storage()
            self._pending[storage._cdata] = weakref.ref(storage), stamp, "reading" if here else "writing"
        return target


def _asks_for_a_shape(indices: Any) -> bool:
    """A mask as an index: how many it chooses is asked of the device."""
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _of_one_type(run: Any) -> Any:
    """torch's rule for the tangent of a bf16 batch norm works in place, and gives bf16; for a subclass of Tensor it does
    not, and gives float32, which convolutions and products of bf16 weights refuse."""

    def convert(*args: Any, **kwargs: Any) -> Any:
        if {a.dtype for a in args if isinstance(a, Tensor)} == {torch.float32, torch.bfloat16}:
            args = tuple(a.bfloat16() if isinstance(a, Tensor) else a for a in args)
        return run(*args, **kwargs)

    return convert


def _rounded(run: Any) -> Any:
    def rounded(*args: Any, **kwargs: Any) -> Any:
        return run(*(round_to_tf32(a) if isinstance(a, Tensor) else a for a in args), **kwargs)

    return rounded
