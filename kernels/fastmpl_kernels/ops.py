"""How an op enters torch: low-level library ops in the namespace `fastmpl`, with a guard against lost derivatives.

A low-level op computes and knows nothing of autograd; a public function wraps it in an `autograd.Function` that has a
backward and a `jvp`. `torch.library.custom_op` would do both at once, but it drops forward-mode tangents without a word
(a tangent of exactly zero); here a bare op that would lose a tangent raises instead.

A call on plain tensors that nothing watches goes straight to the kernel: the dispatcher's way there and back costs more
than a small loss, and several times more again where a large kernel has just emptied the caches.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

LIBRARY = torch.library.Library("fastmpl", "FRAGMENT")  # type: ignore[no-untyped-call]


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that a second derivative refuses, as torch's once_differentiable does, at no cost where none is asked."""
    guarded: Callable[..., Any] = once_differentiable(backward)

    def call(ctx: Any, *upstream: Any) -> Any:
        return (guarded if torch.is_grad_enabled() else backward)(ctx, *upstream)

    return call


def tangent_of(value: Tensor) -> Tensor | None:
    """The tangent at the one level there is; half the time of forward_ad.unpack_dual."""
    tangent: Tensor | None = torch._VF._unpack_dual(value, level=0)[1]
    return tangent


def dual_of(value: Tensor, tangent: Tensor) -> Tensor:
    """Both as a dual tensor; two thirds of the time of forward_ad.make_dual."""
    dual: Tensor = torch._VF._make_dual(value, tangent, level=0)
    return dual


def _has_tangent(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_tangent(item) for item in value)
    return isinstance(value, Tensor) and tangent_of(value) is not None


PLAIN = (Tensor, torch.nn.Parameter)

# Asked on every call, and each takes less than finding it in its module.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_profiled = torch._C._autograd._profiler_enabled
_tracing = torch._C._get_tracing_state
_functorch_active = torch._C._are_functorch_transforms_active
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def transformed() -> bool:
    """Whether a forward-mode level or a transform of torch.func is active, which a plain autograd graph cannot serve."""
    return forward_ad._current_level >= 0 or _functorch_active()


def _is_seen() -> bool:
    """Whether a dispatch mode, a profiler or a tracer must see every op."""
    return bool(_dispatch_modes() or _is_profiled() or _tracing() is not None)


def plain(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors may pass torch's dispatcher by: no dispatch mode, profiler or tracer would miss it,
    and none of them is a subclass, such as a fake tensor, or of a past transform. For a caller that has asked
    `transformed`."""
    if _is_seen():
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator takes longer than the rest
        if tensor is not None and (type(tensor) not in PLAIN or _is_wrapped(tensor)):
            return False
    return True


def _unwatched(args: tuple[Any, ...]) -> bool:
    """The same of all arguments of a call (the first tensor stands for a list), where no transform is active."""
    if _is_seen() or transformed():
        return False
    for value in args:
        first = value[0] if type(value) is list and value else value
        if type(first) in PLAIN:
            if _is_wrapped(first):
                return False
        elif isinstance(first, Tensor):
            return False
    return True


class Op(NamedTuple):
    """A defined op. A call goes to the kernel itself where nothing watches."""

    op: Callable[..., Any]
    run: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.run(*args) if _unwatched(args) else self.op(*args)

    def among(self, tensors: tuple[Tensor, ...], *args: Any) -> Any:
        """For a caller that has asked `transformed` and names the tensors among the arguments: looking at each argument
        anew takes a tenth of a small loss."""
        return self.run(*args) if plain(*tensors) else self.op(*args)

    def parted(self, *args: Any) -> Any:
        """For a caller that has parted values from tangents itself: under forward mode alone there is nothing to lose,
        and the guard, which looks at every argument anew, would cost more than a small kernel."""
        return self.op(*args) if _functorch_active() or _is_seen() else self.run(*args)


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Op:
    """Defines `fastmpl::<schema>`, computed by `run` on every device and by `fake` where only shapes are known.

    Called outside an `autograd.Function` on a tensor that carries a tangent, the op raises NotImplementedError; called on
    a tensor that requires a gradient, its result has none.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"fastmpl::{name}", fake, lib=LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.fastmpl, name).default

    def guard(*args: object) -> Any:
        if forward_ad._current_level >= 0 and any(_has_tangent(value) for value in args):
            raise NotImplementedError(
                f"fastmpl::{name} has no forward-mode rule, its tangent would be lost: call the op's public function."
            )
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    LIBRARY.impl(name, guard, "Autograd")  # type: ignore[no-untyped-call]

    return Op(op, run)
