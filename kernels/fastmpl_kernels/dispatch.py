"""Chooses between an op's reference, native (C++) and Triton implementation; no other module chooses.

`auto` takes the fastest implementation that can run, and the reference where none can. A backend that was asked for by
name raises where it cannot run. float64 always takes the reference, because Triton would silently compute in float32.

Triton compiles a kernel at its first call, and may fail: an architecture it does not know, too little shared memory, no C
compiler for its launcher. With `auto` the op's reference then serves from that call on. The log says so once, and
`fallbacks` tells the reason. Inside a CUDA graph capture the failure is an error instead: a call before the capture decides
which implementation a graph holds.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

Choice = Literal["auto", "triton", "native", "reference"]
Backend = Literal["triton", "native", "reference"]
Result = TypeVar("Result")

_NATIVE_FIRST = ("auto", "native")  # the choices that take the native kernels where those can run
_choice: Choice = "auto"
_ran: dict[str, Backend] = {}
_fallbacks: dict[str, str] = {}
_listeners: list[Callable[[str, str], None]] = []

log = logging.getLogger(__name__)


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run here."""


class KernelFailure(RuntimeError):
    """A Triton kernel could not be compiled or launched. The op that launched it catches this and runs its reference."""


def set_backend(choice: Choice) -> None:
    """Sets the backend of every op of this process."""
    global _choice
    if choice not in get_args(Choice):
        raise BackendError(f"kernels = {choice!r}: choose one of {', '.join(get_args(Choice))}")
    _choice = choice


@contextmanager
def use(choice: Choice) -> Iterator[None]:
    """Sets the backend of every op within a block, for tests and benchmarks."""
    before = _choice
    set_backend(choice)
    try:
        yield
    finally:
        set_backend(before)


def last_backend(op: str) -> Backend | None:
    """The backend that ran the last call of `op`, or None before the first; tests that force a backend assert it."""
    return _ran.get(op)


def record_backend(op: str, backend: Backend) -> None:
    """Records the backend of a call, for an op that chose without `select`."""
    _ran[op] = backend


def is_forced() -> bool:
    """Whether a backend was asked for by name."""
    return _choice != "auto"


def is_interpreted() -> bool:
    """Whether Triton runs in its interpreter, on CPU tensors. Triton reads the variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def is_on_gpu(*tensors: Tensor) -> bool:
    """Whether `auto` prefers Triton for these tensors."""
    for tensor in tensors:  # noqa: SIM110 - not any() of a generator, which takes longer than the rest
        if tensor.is_cuda:
            return True
    return False


def is_capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph capture is under way on the current stream of the tensor's device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def fallbacks() -> Mapping[str, str]:
    """The ops whose Triton kernel failed in this process, which therefore run their reference, and the reason of each."""
    return MappingProxyType(_fallbacks)


def on_fallback(listener: Callable[[str, str], None]) -> Callable[[], None]:
    """Calls `listener(op, reason)` when an op falls back to its reference; returns a function that ends this."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def forget_fallbacks() -> None:
    """Lets every op try its Triton kernel again."""
    _fallbacks.clear()


def _reason(error: Exception) -> str:
    """An error in one line: Triton's messages hold source code between their first and their last words."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words if len(words) <= 300 else f'{words[:100]} ... {words[-180:]}'}"


def launch(op: str, tensor: Tensor, kernel: Callable[..., Result], *arguments: object) -> Result:
    """Calls `kernel(*arguments)`, a function that launches the Triton kernels of `op`, on the device of `tensor`.

    If Triton cannot compile or launch them, this raises KernelFailure and `select` chooses the reference from now on; it
    raises BackendError where Triton was asked for by name or a CUDA graph is being captured. What the device itself
    reports (no memory left, an illegal access) is raised as it is.
    """
    try:
        with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            return kernel(*arguments)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        reason = _reason(error)
        if is_forced():
            raise BackendError(f"{op}: backend 'triton' cannot run: {reason}.") from error
        if is_capturing(tensor):
            raise BackendError(
                f"{op}: its Triton kernel failed inside a CUDA graph capture ({reason}): run one step before the capture."
            ) from error
        if op not in _fallbacks:
            _fallbacks[op] = reason
            log.warning("%s: its Triton kernel cannot run here (%s): the reference serves instead", op, reason)
            for listener in _listeners:
                listener(op, reason)
        _ran[op] = "reference"
        raise KernelFailure(reason) from error


def _why_not_triton(tensors: tuple[Tensor, ...]) -> str | None:
    """The reason why Triton cannot run on these tensors; None where it can."""
    if any(t.dtype == torch.float64 for t in tensors):
        return "float64 takes the reference"
    if not all(is_on_gpu(t) for t in tensors) and not is_interpreted():
        return "Triton needs CUDA tensors, or TRITON_INTERPRET=1"
    return None


def _why_not_native(tensors: tuple[Tensor, ...], available: Callable[[], bool]) -> str | None:
    """The reason why the native kernels cannot run on these tensors; None where they can."""
    for t in tensors:
        if t.dtype == torch.float64:
            return "float64 takes the reference"
        if not t.is_cpu:
            return "the native kernels serve CPU tensors"
    if not available():
        return "the native library was not built (no C++ compiler at installation) or this CPU is not supported"
    return None


def select(op: str, tensors: tuple[Tensor, ...], native: Callable[[], bool] | None) -> Backend:
    """The backend for one call of `op` on `tensors`.

    `native` tells whether the native library is there; None for an op without a native implementation.
    Raises BackendError where a backend that was asked for by name cannot run.
    """
    on_gpu = is_on_gpu(*tensors)
    if not on_gpu and native is not None and _choice in _NATIVE_FIRST and _why_not_native(tensors, native) is None:
        _ran[op] = "native"  # the common case on a CPU, where a choice may take as long as a small kernel
        return "native"
    chosen: Backend = "reference"
    if _choice == "auto":
        if on_gpu and op not in _fallbacks:
            chosen = "triton" if _why_not_triton(tensors) is None else "reference"
    elif _choice != "reference" and not all(t.dtype == torch.float64 for t in tensors if t.is_floating_point()):
        if _choice == "triton":
            reason = _why_not_triton(tensors)
        else:
            reason = "this op has no native implementation" if native is None else _why_not_native(tensors, native)
        if reason is not None:
            raise BackendError(f"{op}: backend {_choice!r} cannot run: {reason}.")
        chosen = _choice
    _ran[op] = chosen
    return chosen
