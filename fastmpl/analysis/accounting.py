"""Counts what a call costs: the peak of live bytes, the operators, the arithmetic. Nothing is timed.

The bytes are those of every storage that an operator returned and that something still holds: results, the autograd
graph, and the tensors that the graph saved. The counts are exact and repeatable. They are the same for real and for
fake tensors, so a step of any size can be counted on a machine that could not run it. Not counted: scratch memory inside
an operator, the rounding of the allocator (see `round_to`), and fragmentation. On a CPU the resident peak was 1.4 to
2.0 % above this count. Fused attention counts as its result and one number a row of scores, which is what a CPU's operator
returns; a GPU's returns the same and a random state.
"""

import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)

Made = TypeVar("Made")


class Account(NamedTuple):
    """The cost of one call. Bytes; `base` existed before the call, and `peak` includes it."""

    base_bytes: int  # what the caller asked to watch: parameters, optimiser state, batches
    peak_bytes: int  # the most that was alive at one moment
    kept_bytes: int  # alive after the call beyond the base: its result, gradients, state that it created
    operations: int  # operators that compute; views and other bookkeeping, which launch nothing, are left out
    by_operator: Counter[str]


class LiveBytes(TorchDispatchMode):
    """Counts live bytes and operators of everything that runs inside the mode.

    `live` is the number of bytes alive now, and `peak` the largest `live` so far. A storage is counted once: from the
    operator that first returned it (or from `watch`) until nothing holds it. `flops` is the arithmetic of
    `count_arithmetic`.
    """

    def __init__(self, round_to: int = 1) -> None:
        """`round_to`: bytes to which a storage is rounded up; 512 imitates CUDA's caching allocator."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.flops = 0
        self.by_operator: Counter[str] = Counter()
        self._round_to = round_to
        self._counted: set[int] = set()

    def watch(self, *trees: object) -> None:
        """Counts all tensors in modules, optimisers and nested tuples, lists and dicts as alive from now on."""
        for tensor in tensors_of(*trees):
            self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # the address of the C++ object: unique while it lives, and `finalize` ends it with it
        if key in self._counted:
            return
        size = -(-storage.nbytes() // self._round_to) * self._round_to
        self._counted.add(key)
        weakref.finalize(storage, self._forget, key, size)
        self.move(size)

    def _forget(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.move(-size)

    def move(self, size: int) -> None:
        """Counts a storage of `size` bytes that begins to live, or of -`size` that ends."""
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := ARITHMETIC.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        if not is_bookkeeping(func):
            self.by_operator[str(func.overloadpacket)] += 1
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return out


class GrowingBytes(LiveBytes):  # type: ignore[no-untyped-call]
    """Counts a call at two sizes of its batch at once: every number of images in it is a multiple of `mark`.

    A storage whose bytes are a multiple of `mark`, a prime that divides nothing else, grows with the batch; all others do
    not. `peaks` are the peaks with `mark` parts of the batch replaced by one and by two.
    """

    def __init__(self, mark: int) -> None:
        super().__init__()
        self.peaks = (0, 0)
        self._mark, self._fixed, self._growing = mark, 0, 0

    def move(self, size: int) -> None:
        if size % self._mark:
            self._fixed += size
        else:
            self._growing += size // self._mark
        one, two = self.peaks
        self.peaks = max(one, self._fixed + self._growing), max(two, self._fixed + 2 * self._growing)


def is_bookkeeping(operator: Any) -> bool:
    """True for operators that launch no kernel: views, allocations without a fill, questions about tensors."""
    nothing = operator.overloadpacket.__name__ in {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty"}
    return nothing or bool(operator.is_view) or _is_question(operator)


@functools.cache
def _is_question(operator: Any) -> bool:
    """True for operators that neither return a tensor nor write one: promote_types, is_same_size, marks of a profiler."""
    schema = operator._schema
    returns = any(_holds_tensors(value.type) for value in schema.returns)
    return not (returns or schema.is_mutable)


def _holds_tensors(kind: torch.Type) -> bool:
    return "Tensor" in str(kind)


def tensors_of(*trees: object) -> list[Tensor]:
    """Lists the tensors of modules (parameters, gradients, buffers), optimisers (state, rates) and nested containers."""
    found: list[Tensor] = []
    for leaf in tree_iter(trees):
        if isinstance(leaf, torch.nn.Module):
            found += tensors_of([(p, p.grad) for p in leaf.parameters()], list(leaf.buffers()))
        elif isinstance(leaf, torch.optim.Optimizer):
            found += tensors_of(list(leaf.state.values()), [dict(g) for g in leaf.param_groups])
        elif isinstance(leaf, Tensor):
            found.append(leaf)
    return found


def measure(fn: Callable[[], object], *watched: object, round_to: int = 1) -> Account:
    """Runs `fn` once and counts it. `watched`: tensors that exist before the call and are needed (see `tensors_of`).

    An older storage is counted only if it is watched or if an operator returns it. Call `fn` once before: its first call
    creates state (momentum, workspaces) that later calls find. Fake tensors are counted in the same way if `fn` and
    its tensors were made under a FakeTensorMode that is active here.
    """
    mode = LiveBytes(round_to)
    mode.watch(*watched)
    base = mode.live
    with mode:
        result = fn()
    account = Account(base, mode.peak, mode.live - base, mode.by_operator.total(), mode.by_operator)
    del result  # kept alive until here: its bytes are part of `kept_bytes`
    return account


def predict_cost(
    build: Callable[[], Made], step: Callable[[Made], object], held: Callable[[Made], object], *, round_to: int = 1
) -> Account:
    """Counts the second step of what `build` makes on fake tensors: nothing is computed or allocated.

    held: gives the tensors that exist before a step (networks, optimisers, batches); base and peak include them.
    """
    with FakeTensorMode():
        made = build()
        step(made)
        return measure(lambda: step(made), held(made), round_to=round_to)


def _convolution_backward(
    gradient: torch.Size, images: torch.Size, weight: torch.Size, *rest: Any, out_shape: object = None
) -> int:
    """Each requested derivative costs as much as the forward pass. The rule of torch ignores groups."""
    *_, transposed, _, _, asked = rest
    positions = images if transposed else gradient
    forward = 2 * positions[0] * math.prod(positions[2:]) * math.prod(weight)
    return int(forward * (asked[0] + asked[1]))


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **options: Any) -> int:
    """The two products of fused attention on a CPU, for which torch has no rule."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **options: Any
) -> int:
    """Its five products: the scores are computed again."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def _product_in_place(result: torch.Size, left: torch.Size, right: torch.Size, **options: Any) -> int:
    """A product that is added to a matrix in place, for which torch has no rule."""
    return 2 * math.prod(left) * right[1]


OWN_ARITHMETIC: Final = {
    torch.ops.aten.addmm_: _product_in_place,
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
ARITHMETIC: Final[dict[Any, Callable[..., int]]] = {
    **flop_registry,
    **{operator: shape_wrapper(rule) for operator, rule in OWN_ARITHMETIC.items()},  # type: ignore[no-untyped-call]
}


def count_arithmetic(fn: Callable[[], object]) -> int:
    """Counts the floating-point operations of one call of `fn`: a multiply-add is 2.

    Convolutions, matrix products and attention are counted; element-wise work is not. A forward-mode derivative is
    counted: it runs two operators on tangents for each product. A factor without a tangent (the images, at the first
    layer) is counted as if it had one.
    """
    with FlopCounterMode(display=False, custom_mapping=OWN_ARITHMETIC) as counter:
        fn()
    return int(counter.get_total_flops())
