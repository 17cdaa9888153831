"""Chooses between an op's reference, native (C++) and Triton implementation; no other module chooses.

`auto` takes the fastest implementation that can run, and the reference where none can. A backend that was asked for by
name raises where it cannot run. float64 always takes the reference, because Triton would silently compute in float32.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

Choice = Literal["auto", "triton", "native", "reference"]
Backend = Literal["triton", "native", "reference"]

_NATIVE_FIRST = ("auto", "native")  # the choices that take the native kernels where those can run
_choice: Choice = "auto"
_ran: dict[str, Backend] = {}


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run here."""


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


def _why_not_triton(tensors: tuple[Tensor, ...]) -> str | None:
    """The reason why Triton cannot run on these tensors; None where it can."""
    if any(t.dtype == torch.float64 for t in tensors):
        return "float64 takes the reference"
    if not all(t.is_cuda for t in tensors) and not is_interpreted():
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
    if native is not None and _choice in _NATIVE_FIRST and _why_not_native(tensors, native) is None:
        _ran[op] = "native"  # the common case on a CPU, where a choice may take as long as a small kernel
        return "native"
    chosen: Backend = "reference"
    if _choice == "auto":
        if any(t.is_cuda for t in tensors):
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
