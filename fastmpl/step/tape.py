"""Records the operators of a call on a CPU, to be run again without Python, autograd and dispatch above them.

A step of small networks spends more time in those layers than in its arithmetic. A tape is the CPU's counterpart of a CUDA
graph: the same operators on the same numbers in the same order, and so bit for bit the same result. What Python held
during the call stays what it was, so everything that changes from call to call is an input of the call, or a tensor that
it writes in place. `find_difference` compares the tapes of two calls and names what does not keep to that.

A recorded call changes no number: what it wrote is put back. That is more than tidiness, as some of torch's derivatives
take other operators, with other rounding, while they are watched. `try_out` therefore compares a tape with the call itself.

Unlike a CUDA graph a tape owns no memory: a result is freed after its last use. It cannot see what runs outside of torch's
operators, such as a compiled network.
"""

import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# operators whose result, or its shape, depends on values: Python holds it then
READS: Final = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
PLAIN: Final = (Tensor, torch.nn.Parameter)

_View = tuple[object, ...]  # what tells views of one storage apart


@dataclass(frozen=True)
class Slot:
    """The place of a tensor that a call makes, or is given."""

    number: int
    storage: int  # shared by the views of one storage


class Call(NamedTuple):
    """One operator. Tensors that the call makes are slots; outer ones, which exist before and after it, are themselves."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Slot | None, ...]  # None: nothing needs it

    @property
    def acts(self) -> bool:
        """Whether it does something besides returning its results: it writes, or it draws."""
        return self.operator._schema.is_mutable or torch.Tag.nondeterministic_seeded in self.operator.tags


class Tape(NamedTuple):
    """The operators of one call, in order."""

    inputs: tuple[Slot, ...]
    calls: list[Call]
    returned: list[Any]  # the leaves of what the call returned: slots, and outer tensors
    written: list[torch.UntypedStorage]  # memory from before the call that it writes
    refusal: str  # why they cannot be run again; empty where they can


def record(call: Callable[..., Any], *inputs: Tensor) -> Tape:
    """Makes the call on copies of the inputs, records its operators, and puts back what it wrote and drew."""
    recorder = _Recorder()
    copies = [each.clone() for each in inputs]
    given = tuple(recorder.name(each) for each in copies)
    drawn = torch.get_rng_state()
    try:
        with recorder:
            result = call(*copies)
    finally:
        restore(recorder.before)
        torch.set_rng_state(drawn)
    returned = [recorder.resolve(leaf) for leaf in tree_leaves(result)]
    assert all(given), "copies are new tensors"
    recorder.require_nothing_kept([*copies, *tree_leaves(result)])
    calls, written = _drop_unused(recorder.calls, returned), [storage for storage, _ in recorder.before]
    return Tape(given, calls, returned, written, recorder.refusal)  # type: ignore[arg-type]


def try_out(
    tape: Tape, program: Callable[..., list[Any]], call: Callable[..., Any], *inputs: Tensor
) -> tuple[Any, bool]:
    """Makes the call. Returns its result, and whether the tape's program returns and writes the same, bit for bit."""
    before, drawn = copies_of(tape.written), torch.get_rng_state()
    returned = program(*inputs)
    after = copies_of(tape.written)
    restore(before)
    torch.set_rng_state(drawn)
    result = call(*inputs)
    pairs = [*zip(returned, tree_leaves(result), strict=True), *((_bytes(a), _bytes(b)) for a, b in after)]
    return result, all(torch.equal(_bits(a), _bits(b)) for a, b in pairs)


_Copies = list[tuple[torch.UntypedStorage, torch.UntypedStorage]]


def copies_of(storages: list[torch.UntypedStorage]) -> _Copies:
    return [(storage, storage.clone()) for storage in storages]  # type: ignore[no-untyped-call]


def restore(before: _Copies) -> None:
    """Puts the second of each pair into the first."""
    for storage, copy in before:
        storage.copy_(copy)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def slots_in(*trees: object) -> set[Slot]:
    """The slots in nested tuples, lists and dicts."""
    return {leaf for leaf in tree_leaves(trees) if isinstance(leaf, Slot)}


def find_difference(first: Tape, second: Tape) -> str:
    """Where two calls differ otherwise than in the values of tensors; empty where they do not."""
    for old, new in zip_longest(first.calls, second.calls):
        if old is None or new is None or old.operator is not new.operator:
            names = (each.operator if each else "nothing" for each in (old, new))
            return "{} in one step, {} in the next".format(*names)
        before, after = tree_leaves((old.args, old.kwargs)), tree_leaves((new.args, new.kwargs))
        if len(before) != len(after) or not all(map(_is_same, before, after)) or old.results != new.results:
            return f"{old.operator} is given something else in the next step"
    if not all(map(_is_same, first.returned, second.returned)):
        return "it returns something else in the next step"
    return ""


def _is_same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):  # outer ones: both tapes keep theirs, so addresses differ
        return old.data_ptr() == new.data_ptr() and _view_of(old) == _view_of(new)
    return type(old) is type(new) and bool(old is new or old == new)


class _Recorder(TorchDispatchMode):
    """Records operators, and which of their arguments are results of earlier ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.refusal = ""
        self.before: _Copies = []  # outer memory that was written, as it was
        self._saved: set[int] = set()
        self._outer: dict[int, Tensor] = {}  # by storage; held, so that its address stays its own
        self._made: dict[int, dict[_View, Slot]] = {}  # by a storage that lives: its views that have slots
        self._slots = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Read by torch: whether to import its compiler, over a second, in order to be left out by it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map(self.resolve, args), tree_map(self.resolve, kwargs or {})
        if func._schema.is_mutable:
            self._save(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        out = func(*args, **(kwargs or {}))
        if any(tag in func.tags for tag in READS) and not _looks_up(func, args):
            self._refuse(f"{func} reads what was computed")
        results = out if isinstance(out, list | tuple) else [out]
        named = tuple(self.name(each) if isinstance(each, Tensor) else None for each in results)
        self.calls.append(Call(func, *given, named))
        return out

    def resolve(self, leaf: Any) -> Any:
        """The slot of a tensor that the call has made, or is given; anything else as it is."""
        if not isinstance(leaf, Tensor) or not self._is_plain(leaf):
            return leaf
        storage = leaf.untyped_storage()._cdata
        if storage not in self._made:
            self._outer.setdefault(storage, leaf.detach())
            return leaf.detach()
        slots, view = self._made[storage], _view_of(leaf)
        if view not in slots:  # made where no mode looks: a backward pass unpacks what it saved
            base = next(iter(slots.values()))
            slots[view] = self._new_slot(base.storage)
            where = [*leaf.shape], [*leaf.stride()], leaf.storage_offset()
            self.calls.append(Call(torch.ops.aten.as_strided.default, (base, *where), {}, (slots[view],)))
        return slots[view]

    def name(self, leaf: Tensor) -> Slot | None:
        """A slot for a new tensor; None for one that has a slot, and for a view of an outer one."""
        if not self._is_plain(leaf):
            return None
        storage = leaf.untyped_storage()
        key, view = storage._cdata, _view_of(leaf)
        if key in self._outer:
            return None
        if key not in self._made:
            self._made[key] = {}
            weakref.finalize(storage, self._made.pop, key, None)  # its address may soon be another's
        slots = self._made[key]
        if view in slots:
            return None
        slots[view] = self._new_slot(next(iter(slots.values())).storage if slots else self._slots)
        return slots[view]

    def _save(self, tensors: Iterable[Tensor]) -> None:
        """Keeps outer memory as it is before it is written for the first time."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._outer and storage._cdata not in self._saved:
                self._saved.add(storage._cdata)
                self.before += copies_of([storage])

    def require_nothing_kept(self, known: list[Any]) -> None:
        """A tensor that the call made and that outlives it would be stale after the next run."""
        expected = {leaf.untyped_storage()._cdata for leaf in known if isinstance(leaf, Tensor)}
        if self._made.keys() - expected:
            gc.collect()  # of reference cycles
        if self._made.keys() - expected:
            self._refuse("it keeps a tensor that it made")

    def _new_slot(self, storage: int) -> Slot:
        self._slots += 1
        return Slot(self._slots - 1, storage)

    def _is_plain(self, leaf: Tensor) -> bool:
        plain = type(leaf) in PLAIN and leaf.layout is torch.strided and leaf.device.type in ("cpu", "meta")
        if not plain:
            self._refuse(f"it holds a tensor that is not plain: {type(leaf).__name__}, {leaf.layout}, {leaf.device}")
        return plain

    def _refuse(self, reason: str) -> None:
        self.refusal = self.refusal or reason


def _looks_up(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether it takes rows by their numbers: only the shape of what a mask chooses depends on values."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype == torch.int64 for index in args[1])


def _view_of(leaf: Tensor) -> _View:
    return (leaf.shape, leaf.stride(), leaf.storage_offset(), leaf.dtype, leaf.is_conj(), leaf.is_neg())


def _drop_unused(calls: list[Call], returned: list[Any]) -> list[Call]:
    """Leaves out what nobody can tell the absence of, such as autograd's questions and views of parameters."""
    needed, kept = slots_in(returned), []
    for call in reversed(calls):
        results = tuple(each if each in needed else None for each in call.results)
        if call.acts or any(results):
            kept.append(call._replace(results=results))
            needed |= slots_in(call.args, call.kwargs)
    return kept[::-1]
