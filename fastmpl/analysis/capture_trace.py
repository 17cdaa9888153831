"""Records what the capture lint needs of a running step: operators, ages of tensors, calls that touch the host.

Two modes of torch record. `OperatorTrace` is below autograd and sees operators. `HostWatch` is above it and sees the
calls as they were written. `fastmpl.analysis.capture_lint.lint` judges the records.
"""

import functools
import sys
import weakref
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Kind = Literal[
    "host read",  # waits for the device: .item(), float(t), if t, print(t)
    "shape from data",  # nonzero, a boolean index, unique
    "host traffic",  # moves data between host and device, or makes a tensor from Python numbers
    "host draw",  # random numbers of Python, of numpy or of a torch.Generator: frozen at capture
    "varies",  # another operator, shape or Python number than in the step before: frozen at capture
    "rebinds",  # reads a tensor that an earlier step made: a replay would read the old address
    "grows",  # holds more bytes after each step
    "fails",  # does not run on fake tensors, e.g. a registered operator without a fake form
]


class Fault(NamedTuple):
    """One reason why the step cannot be captured."""

    kind: Kind
    what: str
    where: str  # "folder/file.py:line" of the innermost line outside torch; "" if no line is known

    def __str__(self) -> str:
        return f"{self.where or 'step'}: {self.kind}: {self.what}"


STEP_DEVICE = torch.device("cpu", 1)
"""The device of the step's tensors in a lint. Fake tensors keep it apart from "cpu", as a GPU is, while each question for
its type has the answer "cpu": the kernels, fused optimisers, autocast and the backward pass need no driver."""

_ZERO_TANGENT = torch.ops.aten._efficientzerotensor.default
"""Autograd's zero tangent: it has no memory, and its fake form loses the index of the device."""

_TORCH = str(Path(torch.__file__).parent)
_OWN_FILES = ("accounting.py", "capture_lint.py", "capture_trace.py", "module_watch.py")
_RULES = Path(__file__).parents[1] / "learners" / "forward_rules.py"  # between a network's line and torch, in a tangent
_MACHINERY = {str(_RULES), *(str(Path(__file__).with_name(name)) for name in _OWN_FILES)}


@functools.cache
def is_ours(filename: str) -> bool:
    """True for files outside torch and outside the lint itself."""
    return not (filename.startswith((_TORCH, "<")) or filename in _MACHINERY)


def name_line(filename: str, line: int | None) -> str:
    return f"{'/'.join(Path(filename).parts[-2:])}:{line}"


def find_line() -> str:
    """The innermost running line outside torch and outside the lint."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return name_line(frame.f_code.co_filename, frame.f_lineno) if frame else ""


class Call(NamedTuple):
    """One operator of a step, with those properties of its arguments that a captured graph freezes."""

    operator: str
    arguments: tuple[str, ...]
    where: str


def _describe(argument: object) -> str:
    if isinstance(argument, Tensor):
        return f"{argument.dtype} {tuple(argument.shape)} strides {tuple(argument.stride())}"
    return repr(argument) if isinstance(argument, bool | int | float | str | torch.dtype) else type(argument).__name__


def _is_on_host(tensor: Tensor) -> bool:
    """Not so for "meta": fake tensors move to it inside their own code."""
    return tensor.device.type == "cpu" and tensor.device != STEP_DEVICE


class OperatorTrace(TorchDispatchMode):
    """Records the calls of each step, tensors made from host memory, and reads of tensors that an earlier step made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.found: dict[Fault, None] = {}
        self.stepping = False
        self.round = 0
        self._born: dict[int, int] = {}  # storage -> the round that made it

    def begin(self, stepping: bool) -> None:
        """Starts a round: a step, whose calls are recorded, or the time between two steps, where tensors only age."""
        self.stepping = stepping
        self.round += 1
        self.calls = []

    def forget(self) -> None:
        """Drops the faults and ages of tensors so far. Tensors that exist now are as old as those of the build."""
        self.found.clear()
        self._born.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions that fake tensors ask
            return func(*args, **kwargs)
        leaves = list(tree_iter((args, kwargs)))
        given = {t.untyped_storage()._cdata for t in leaves if isinstance(t, Tensor)}
        if self.stepping:
            self._record(func, leaves, given)
        out = func(*args, **kwargs)
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                if self.stepping and func is not _ZERO_TANGENT and _is_on_host(leaf):
                    self._note("host traffic", f"{func} makes a tensor on the host", find_line())
                storage = leaf.untyped_storage()
                key = storage._cdata  # the address of the C++ object: unique while it lives
                if key not in given and key not in self._born:
                    self._born[key] = self.round
                    weakref.finalize(storage, self._born.pop, key, None)
        return out

    def _record(self, func: Any, leaves: list[Any], given: set[int]) -> None:
        where = find_line()
        self.calls.append(Call(str(func), tuple(map(_describe, leaves)), where))
        if func is torch.ops.aten.lift_fresh.default:
            self._note("host traffic", "copies numbers to the device; fill a tensor that stays instead", where)
        if any(isinstance(leaf, Tensor) and _is_on_host(leaf) for leaf in leaves):
            self._note("host traffic", f"{func} is given a tensor of the host", where)
        if any(self._born.get(storage, self.round) < self.round for storage in given):
            self._note("rebinds", f"{func} reads a tensor made since the step before; copy into one that stays", where)

    def _note(self, kind: Kind, what: str, where: str) -> None:
        if not any(f.kind == kind and f.where == where for f in self.found):
            self.found[Fault(kind, what, where)] = None


class StepDevice(TorchFunctionMode):
    """Within it, `torch.tensor` makes a tensor on the device of the step. Its fake form leaves the numbers on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not torch.tensor or (kwargs or {}).get("device") not in (None, STEP_DEVICE):
            return out
        return torch.empty(out.shape, dtype=out.dtype, device=STEP_DEVICE, requires_grad=out.requires_grad)


class HostWatch(TorchFunctionMode):
    """Records calls that read a tensor on the host, move it there, or draw from a torch.Generator.

    Calls inside torch are skipped: there `.to(device)` is usually a move to the device where the tensor already is.
    """

    READS = (Tensor.item, Tensor.tolist, Tensor.numpy)
    PYTHON_READS = (
        Tensor.__repr__,
        Tensor.__format__,
        Tensor.__array__,
    )  # Python methods of torch: their caller is a frame of torch
    MOVES = (Tensor.cuda, Tensor.pin_memory)  # what fake tensors on the CPU cannot do; other moves are operators

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Fault, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written_outside_torch = is_ours(sys._getframe(1).f_code.co_filename)
        name = getattr(func, "__name__", str(func))
        if func in self.PYTHON_READS or (written_outside_torch and func in self.READS):
            self._note("host read", f"{name} waits for the device")
        elif written_outside_torch and func in self.MOVES:
            self._note("host traffic", f"{name} moves data between host and device")
        if kwargs.get("generator") is not None:
            self._note("host draw", f"{name} draws from a generator of its own")
        return func(*args, **kwargs)

    def _note(self, kind: Kind, what: str) -> None:
        self.found[Fault(kind, what, find_line())] = None
