"""The one place that chooses between an op's reference, native (C++) and Triton implementation.

`auto` takes the fastest one that can run and falls back to the reference; a backend asked for by name raises where it
cannot run. float64 always gets the reference: Triton would compute it in float32 without a word.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

Choice = Literal["auto", "triton", "native", "reference"]
Backend = Literal["triton", "native", "reference"]

_NATIVE_FIRST = ("auto", "native")  # on tensors of a CPU, and of a type that the native kernels have
_choice: Choice = "auto"
_ran: dict[str, Backend] = {}


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run here."""


def set_backend(choice: Choice) -> None:
    """Sets the backend of every op of this process."""
    global _choice
    if choice not in get_args(Choice):
        raise BackendError(f"kernels = {choice!r}: choose one of {', '.join(get_args(Choice))}")
    _choice = choice


@contextmanager
def use(choice: Choice) -> Iterator[None]:
    """The backend of every op within a block, for tests and benchmarks."""
    before = _choice
    set_backend(choice)
    try:
        yield
    finally:
        set_backend(before)


def last_backend(op: str) -> Backend | None:
    """The backend that the last call of `op` ran on; proves that a forced backend was the one used."""
    return _ran.get(op)


def record_backend(op: str, backend: Backend) -> None:
    """Records what an op ran on, for an op that chose without `select`."""
    _ran[op] = backend


def is_forced() -> bool:
    """Whether a backend was asked for by name."""
    return _choice != "auto"


def is_interpreted() -> bool:
    """Whether Triton runs in its interpreter, on CPU tensors (read by Triton when it is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _can_triton(tensors: tuple[Tensor, ...]) -> str | None:
    """None if Triton can run on these tensors, else the reason why not."""
    if any(t.dtype == torch.float64 for t in tensors):
        return "float64 is for the reference"
    if not all(t.is_cuda for t in tensors) and not is_interpreted():
        return "Triton needs CUDA tensors, or TRITON_INTERPRET=1"
    return None


def _can_native(tensors: tuple[Tensor, ...], available: Callable[[], bool]) -> str | None:
    for t in tensors:
        if t.dtype == torch.float64:
            return "float64 is for the reference"
        if not t.is_cpu:
            return "the native kernels are for CPU tensors"
    if not available():
        return "the native library was not built (no C++ compiler at installation) or this CPU is not supported"
    return None


def select(op: str, tensors: tuple[Tensor, ...], native: Callable[[], bool] | None) -> Backend:
    """The backend for one call of `op` on `tensors`.

    `native` says whether the native library is there; None for an op that has no native implementation.
    Raises BackendError where a backend asked for by name cannot run.
    """
    if native is not None and _choice in _NATIVE_FIRST and _can_native(tensors, native) is None:
        _ran[op] = "native"  # the common case on a CPU, where a call may take as long as a choice
        return "native"
    chosen: Backend = "reference"
    if _choice == "auto":
        if any(t.is_cuda for t in tensors):
            chosen = "triton" if _can_triton(tensors) is None else "reference"
    elif _choice != "reference" and not all(t.dtype == torch.float64 for t in tensors if t.is_floating_point()):
        if _choice == "triton":
            reason = _can_triton(tensors)
        else:
            reason = "this op has no native implementation" if native is None else _can_native(tensors, native)
        if reason is not None:
            raise BackendError(f"{op}: backend {_choice!r} cannot run: {reason}.")
        chosen = _choice
    _ran[op] = chosen
    return chosen
