"""What the capture lint watches while a step runs: operators, the age of tensors, calls that touch the host.

Two modes of torch: one below autograd, which sees operators, and one above it, which sees calls as they were written.
They only note; `lint` decides.
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
    "host traffic",  # moves data between host and device, or makes a tensor of Python numbers
    "host draw",  # Python's or numpy's random numbers, or a generator of the step's own: frozen at capture
    "varies",  # another operator, shape or Python number than in the step before: frozen at capture
    "rebinds",  # reads a tensor that an earlier step made: the graph would go on reading the old address
    "grows",  # holds more bytes after each step
    "fails",  # does not run on fake tensors at all, e.g. a registered operator without a fake form
]


class Fault(NamedTuple):
    """One reason why the step cannot be captured."""

    kind: Kind
    what: str
    where: str  # "folder/file.py:line" of the innermost line that is not torch's; "" where no line can be named

    def __str__(self) -> str:
        return f"{self.where or 'step'}: {self.kind}: {self.what}"


_TORCH = str(Path(torch.__file__).parent)
_MACHINERY = {str(Path(__file__).with_name(name)) for name in ("accounting.py", "capture_lint.py", "capture_trace.py")}


@functools.cache
def is_ours(filename: str) -> bool:
    """Whether a line of that file is the step's own: neither torch's nor the lint's."""
    return not (filename.startswith((_TORCH, "<")) or filename in _MACHINERY)


def place(filename: str, line: int | None) -> str:
    return f"{'/'.join(Path(filename).parts[-2:])}:{line}"


def _here() -> str:
    """The innermost line of the running code that is neither torch's nor this file's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return place(frame.f_code.co_filename, frame.f_lineno) if frame else ""


class Call(NamedTuple):
    """What a step asks of the device: an operator and all that a captured graph would freeze of its arguments."""

    operator: str
    arguments: tuple[str, ...]
    where: str


def _frozen(argument: object) -> str:
    if isinstance(argument, Tensor):
        return f"{argument.dtype} {tuple(argument.shape)} strides {tuple(argument.stride())}"
    return repr(argument) if isinstance(argument, bool | int | float | str | torch.dtype) else type(argument).__name__


class Trace(TorchDispatchMode):
    """The calls of each step; tensors made of host memory; reads of tensors that an earlier step made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.found: dict[Fault, None] = {}
        self.stepping = False
        self.round = 0
        self._born: dict[int, int] = {}  # storage -> the round that made it

    def begin(self, stepping: bool) -> None:
        """A new round: of the step, which is recorded, or of what happens between steps, where tensors only age."""
        self.stepping = stepping
        self.round += 1
        self.calls = []

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
                storage = leaf.untyped_storage()
                key = storage._cdata  # the address of the C++ object: unique while it lives
                if key not in given and key not in self._born:
                    self._born[key] = self.round
                    weakref.finalize(storage, self._born.pop, key, None)
        return out

    def _record(self, func: Any, leaves: list[Any], given: set[int]) -> None:
        where = _here()
        self.calls.append(Call(str(func), tuple(map(_frozen, leaves)), where))
        if func is torch.ops.aten.lift_fresh.default:
            self._note("host traffic", "copies numbers to the device; fill a tensor that stays instead", where)
        if any(self._born.get(storage, self.round) < self.round for storage in given):
            self._note("rebinds", f"{func} reads a tensor made since the step before; copy into one that stays", where)

    def _note(self, kind: Kind, what: str, where: str) -> None:
        if not any(f.kind == kind and f.where == where for f in self.found):
            self.found[Fault(kind, what, where)] = None


class Host(TorchFunctionMode):
    """Notes the calls that read a tensor on the host, move it there, or draw from a generator of their own.

    Only those written outside torch: inside, `.to(device)` is usually a move to where the tensor already is.
    """

    READS = (Tensor.item, Tensor.tolist, Tensor.numpy)
    PYTHON_READS = (Tensor.__repr__, Tensor.__format__, Tensor.__array__)  # methods in Python: torch's own frame calls
    MOVES = (Tensor.cpu, Tensor.cuda, Tensor.pin_memory)

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Fault, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written_outside_torch = is_ours(sys._getframe(1).f_code.co_filename)
        name = getattr(func, "__name__", str(func))
        if func in self.PYTHON_READS or (written_outside_torch and func in self.READS):
            self._note("host read", f"{name} waits for the device")
        elif written_outside_torch and (func in self.MOVES or (func is Tensor.to and _names_the_host(args, kwargs))):
            self._note("host traffic", f"{name} moves data between host and device")
        if kwargs.get("generator") is not None:
            self._note("host draw", f"{name} draws from a generator of its own")
        return func(*args, **kwargs)

    def _note(self, kind: Kind, what: str) -> None:
        self.found[Fault(kind, what, _here())] = None


def _names_the_host(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `.to` was given "cpu" as a literal. A torch.device is not judged: here every device is the CPU."""
    return any(isinstance(v, str) and v.startswith("cpu") for v in (*args[1:], kwargs.get("device")))
