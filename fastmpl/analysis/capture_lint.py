"""Whether a step could be captured as one CUDA graph, found out on a machine with no GPU.

A captured graph replays the same kernels on the same addresses. So a step must not read the device from the host, ask
for shapes that depend on data, move data between host and device, take numbers from Python that change, draw random
numbers on the host, replace a tensor that it reads in the next step, or hold more memory after each step. Fake tensors
(no data, any size, no arithmetic) reveal the first two; the rest shows when successive steps are compared, operator by
operator, while every schedule moves in between.

What this cannot see: a violation of stream order, a workspace of cuBLAS or cuDNN, the order of collectives, a clock
that is read and changes no operator's argument, a numpy generator of the step's own whose numbers never reach a tensor.
"""

import gc
import random
import traceback
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from fastmpl.analysis.accounting import LiveBytes
from fastmpl.analysis.capture_trace import Call, Fault, Host, Trace, is_ours, place

S = TypeVar("S")


def _host_generators() -> tuple[object, ...]:
    numpy_state = np.random.get_state(legacy=False)
    return random.getstate(), repr(numpy_state)


def _first_difference(before: list[Call], after: list[Call]) -> Fault | None:
    """The first call that two steps do not share: later ones follow from it."""
    for old, new in zip(before, after, strict=False):
        if old.operator != new.operator:
            return Fault("varies", f"{old.operator} in one step, {new.operator} in the next", new.where)
        for a, b in zip(old.arguments, new.arguments, strict=False):
            if a != b:
                return Fault("varies", f"{old.operator} is given {a} in one step, {b} in the next", new.where)
    if len(before) != len(after):
        longer = max(before, after, key=len)
        where = longer[min(len(before), len(after))].where
        return Fault("varies", f"{len(before)} operators in one step, {len(after)} in the next", where)
    return None


def _fault_of(error: Exception, building: bool) -> Fault:
    lines = [f for f in traceback.extract_tb(error.__traceback__) if is_ours(f.filename)]
    where = place(lines[-1].filename, lines[-1].lineno) if lines else ""
    if building:  # may read and move what it likes on a device, but not on fake tensors
        what = f"cannot be built of fake tensors: {type(error).__name__}: {error}".splitlines()[0]
        return Fault("fails", what, where)
    if isinstance(error, DataDependentOutputException):
        return Fault("host read", f"{error.func} waits for the device", where)
    if isinstance(error, DynamicOutputShapeException):
        return Fault("shape from data", f"{error.func} has a shape that depends on data", where)
    if isinstance(error, UnsupportedOperatorException):
        return Fault("fails", f"{error.func} has no fake form (torch.library.register_fake)", where)
    return Fault("fails", f"{type(error).__name__}: {error}".splitlines()[0], where)


def lint(build: Callable[[], S], step: Callable[[S], object], advance: Callable[[S], object]) -> list[Fault]:
    """The faults of a step, an empty list if it can be captured.

    build: makes everything the step uses (networks, optimisers, static inputs, knobs as torch.empty(()): not
        torch.tensor(0.1), whose constant a fake tensor remembers, so that reading it would go unnoticed).
    step: what would be captured; called three times.
    advance: what happens between replays: moves every schedule and fills the static inputs.

    A step that cannot go on (a host read) is reported with that fault alone and those found before it.
    """
    host, trace, memory = Host(), Trace(), LiveBytes()
    traces: list[list[Call]] = []
    live: list[int] = []
    faults: list[Fault] = []
    building = True
    gc.freeze()  # a collection then looks at what the step made, not at all of torch: 0.5 s less each
    try:
        with FakeTensorMode():
            state = build()
            building = False
            with host:
                step(state)  # creates what the two that are compared find: optimiser state, gradients
            host.found.clear()
            with memory, trace:
                for _ in range(2):
                    trace.begin(stepping=False)
                    advance(state)
                    trace.begin(stepping=True)
                    drawn = _host_generators()
                    with host:
                        step(state)
                    if _host_generators() != drawn:
                        faults.append(Fault("host draw", "draws from Python's or numpy's global generator", ""))
                    traces.append(trace.calls)
                    gc.collect()  # bytes held by a cycle are not growth
                    live.append(memory.live)
    except Exception as error:  # whatever a step raises on fake tensors is the finding
        fault = _fault_of(error, building)
        faults += [] if any(f.where == fault.where for f in host.found) else [fault]  # else it was named already
    finally:
        gc.unfreeze()
    if len(traces) == 2:
        difference = _first_difference(*traces)
        faults += [difference] if difference else []
        if live[1] > live[0]:
            faults.append(Fault("grows", f"holds {live[1] - live[0]} more bytes after each step", ""))
    return list(dict.fromkeys([*host.found, *trace.found, *faults]))
