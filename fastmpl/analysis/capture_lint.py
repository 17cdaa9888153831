"""Tells without a GPU whether a step can be captured as one CUDA graph.

A captured graph replays the same kernels on the same addresses. A step that can be captured must not

- read the device from the host, or ask for shapes that depend on data: fake tensors (no data, any size) raise there;
- move data between host and device, or make and use tensors of the host: the tensors of the step are on `STEP_DEVICE`,
  and each operator of the step that is given or makes a tensor of the CPU is found;
- take numbers from Python that change, draw random numbers on the host, replace a tensor that the next step reads, or
  hold more memory after each step: successive steps are compared operator by operator, while schedules move.

A branch that is taken every n-th step is found for n up to the number of compared steps (`STEPS`). A branch that a module
takes at every n-th pass is found for any n, by the number or word that the module changes.

This cannot see: a rarer branch whose count is no attribute of a module, e.g. one in a list; a violation of stream order;
a workspace of cuBLAS or cuDNN; the order of collectives; a clock that changes no operator's argument; a numpy generator
of the step whose numbers never reach a tensor; a move within an operator that is registered with torch.
`tests/imitated_gpu` finds stream order.
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
from fastmpl.analysis.capture_trace import (
    STEP_DEVICE,
    Call,
    Fault,
    HostWatch,
    OperatorTrace,
    StepDevice,
    is_ours,
    name_line,
)
from fastmpl.analysis.module_watch import ModuleWatch

S = TypeVar("S")

STEPS = 12
"""Steps that are compared. A branch taken every n-th step is found for n from 2 to this number."""


def _read_host_generators() -> tuple[object, ...]:
    numpy_state = np.random.get_state(legacy=False)
    return random.getstate(), repr(numpy_state)


def _find_first_difference(before: list[Call], after: list[Call]) -> Fault | None:
    """The first call that differs between two steps. Later differences follow from it."""
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


def _explain_error(error: Exception, building: bool) -> Fault:
    lines = [f for f in traceback.extract_tb(error.__traceback__) if is_ours(f.filename)]
    where = name_line(lines[-1].filename, lines[-1].lineno) if lines else ""
    if building:  # reads and moves are allowed here on a device, but fake tensors refuse them
        what = f"cannot be built of fake tensors: {type(error).__name__}: {error}".splitlines()[0]
        return Fault("fails", what, where)
    if isinstance(error, DataDependentOutputException):
        return Fault("host read", f"{error.func} waits for the device", where)
    if isinstance(error, DynamicOutputShapeException):
        return Fault("shape from data", f"{error.func} has a shape that depends on data", where)
    if isinstance(error, UnsupportedOperatorException):
        return Fault("fails", f"{error.func} has no fake form (torch.library.register_fake)", where)
    return Fault("fails", f"{type(error).__name__}: {error}".splitlines()[0], where)


def lint(
    build: Callable[[], S], step: Callable[[S], object], advance: Callable[[S], object], *, steps: int = STEPS
) -> list[Fault]:
    """Lists the faults of a step; an empty list means that it can be captured.

    build: makes everything that the step uses: networks, optimisers, static inputs, knobs. Here and in `advance`, a tensor
        made without a device is on `STEP_DEVICE`, the default device; one made on "cpu" is a tensor of the host.
    step: the function to capture.
    advance: called between two steps: moves every schedule and fills the static inputs.
    steps: how many steps are compared, 2 or more, after one that is not.

    If a step cannot go on (a host read), that fault and the earlier ones are reported.
    """
    host, trace, memory, modules = HostWatch(), OperatorTrace(), LiveBytes(), ModuleWatch()
    before: list[Call] = []
    difference: Fault | None = None
    live: list[int] = []
    faults: list[Fault] = []
    building = True
    gc.freeze()  # collections skip all objects that exist now: 0.5 s less each
    try:
        with FakeTensorMode():
            with STEP_DEVICE, StepDevice():
                state = build()
            building = False
            trace.begin(stepping=True)
            with trace, host:
                step(state)  # creates the optimiser state and gradients that the compared steps find
            host.found.clear()
            trace.forget()
            with memory, trace:
                for number in range(steps):
                    trace.begin(stepping=False)
                    with STEP_DEVICE, StepDevice():
                        advance(state)
                    trace.begin(stepping=True)
                    drawn = _read_host_generators()
                    with host, modules:
                        step(state)
                    if _read_host_generators() != drawn:
                        faults.append(Fault("host draw", "draws from Python's or numpy's global generator", ""))
                    if number > 0 and difference is None:
                        difference = _find_first_difference(before, trace.calls)
                    before = trace.calls
                    gc.collect()  # bytes held by a reference cycle are no growth
                    live.append(memory.live)
    except Exception as error:  # any error of a step on fake tensors is a fault to report
        fault = _explain_error(error, building)
        known = [*host.found, *(trace.found if fault.kind == "fails" else ())]  # two devices fail: the trace says why
        faults += [] if any(f.where == fault.where for f in known) else [fault]  # one fault a line
    finally:
        gc.unfreeze()
    faults += [difference] if difference else []
    if len(live) == steps and live[-1] > live[0]:
        faults.append(Fault("grows", f"holds {live[-1] - live[0]} more bytes after {steps - 1} further steps", ""))
    return list(dict.fromkeys([*host.found, *trace.found, *modules.found, *faults]))
