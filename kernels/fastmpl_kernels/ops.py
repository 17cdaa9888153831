"""Defines the ops of torch's library `fastmpl`, with a guard against lost derivatives.

A low-level op computes and has no derivative. A public function wraps it in an `autograd.Function` with a `backward` and a
`jvp`. `torch.library.custom_op` would do both at once, but it drops forward-mode tangents silently (the tangent is exactly
zero); here a bare op that would lose a tangent raises instead.

A call on plain tensors that no mode watches goes directly to the kernel. torch's dispatcher costs more than a small loss,
and several times more where a large kernel has just emptied the caches.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("fastmpl", "FRAGMENT")  # type: ignore[no-untyped-call]


def refuse_second_derivative(op: str) -> None:
    """For a backward whose result has no derivative: raises NotImplementedError where one may be asked for.

    Autograd calls a backward with gradients enabled under `create_graph=True` alone. torch's own once_differentiable looks
    whether the upstream gradient requires one and attaches a node that autograd prunes where another path leads to the
    parameters: a Hessian would silently lack the op's part.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(_message(op))


def _message(op: str) -> str:
    return (
        f"{op} has no second derivative on this backend: differentiate without create_graph=True, or choose the "
        "reference (kernels = 'reference')."
    )


class _Once(torch.autograd.Function):
    """(op, gradient, *inputs) -> the gradient as a function of all inputs, whose derivative raises in both modes."""

    @staticmethod
    def forward(op: str, gradient: Tensor, *inputs: Tensor | None) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        raise NotImplementedError(_message(ctx.op))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_message(ctx.op))


def differentiable_once(
    op: str, gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients for torch.func, which always records a graph of them: their derivative by any input raises."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    return tuple(None if g is None else _Once.apply(op, g, *inputs) for g in gradients)


def unpack_tangent(value: Tensor) -> Tensor | None:
    """The tangent of a dual tensor, or None; takes half the time of forward_ad.unpack_dual."""
    tangent: Tensor | None = torch._VF._unpack_dual(value, level=0)[1]
    return tangent


def make_dual(value: Tensor, tangent: Tensor) -> Tensor:
    """A dual tensor; takes two thirds of the time of forward_ad.make_dual."""
    dual: Tensor = torch._VF._make_dual(value, tangent, level=0)
    return dual


def _has_tangent(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_tangent(item) for item in value)
    return isinstance(value, Tensor) and unpack_tangent(value) is not None


PLAIN = (Tensor, torch.nn.Parameter)

# Every call asks these; a name of this module is found faster than an attribute of another.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_profiled = torch._C._autograd._profiler_enabled
_tracing = torch._C._get_tracing_state
is_functorch_active = torch._C._are_functorch_transforms_active
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def is_transformed() -> bool:
    """Whether a forward-mode level or a transform of torch.func is active, which a plain autograd graph cannot serve."""
    return forward_ad._current_level >= 0 or is_functorch_active()


def _is_seen() -> bool:
    """Whether a dispatch mode, a profiler or a tracer must see every op."""
    return bool(_dispatch_modes() or _is_profiled() or _tracing() is not None)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors may bypass torch's dispatcher: no dispatch mode, profiler or tracer is active, and no
    tensor is of a subclass (such as a fake tensor) or left over from a transform. The caller has asked
    `is_transformed`."""
    if _is_seen():
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator takes longer than the rest
        if tensor is not None and (type(tensor) not in PLAIN or _is_wrapped(tensor)):
            return False
    return True


def _unwatched(args: tuple[Any, ...]) -> bool:
    """The same for all arguments of a call (the first tensor stands for a list), and no transform is active."""
    if _is_seen() or is_transformed():
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
    """A library op and the Python function that computes it. A call bypasses torch's dispatcher where it may."""

    op: Callable[..., Any]
    run: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.run(*args) if _unwatched(args) else self.op(*args)

    def call_on(self, tensors: tuple[Tensor, ...], *args: Any) -> Any:
        """Calls the op on `args`, whose tensors the caller names; it has asked `is_transformed`. To look at each argument
        again takes a tenth of a small loss."""
        return self.run(*args) if is_plain(*tensors) else self.op(*args)

    def call_on_parts(self, *args: Any) -> Any:
        """Calls the op on values that the caller has separated from their tangents. In forward mode nothing can be lost
        then, and the guard, which looks at every argument again, would cost more than a small kernel."""
        return self.op(*args) if is_functorch_active() or _is_seen() else self.run(*args)


_RUNS: dict[Callable[..., Any], Callable[..., Any]] = {}  # by library op


def run_of(op: Callable[..., Any]) -> Callable[..., Any]:
    """The Python function that computes an operator of this library; another's operator itself."""
    return _RUNS.get(op, op)


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Op:
    """Defines `fastmpl::<schema>`. `run` computes it on every device, `fake` where only shapes are known.

    Outside an `autograd.Function` the op raises NotImplementedError for a tensor that carries a tangent, and returns a
    result without a gradient for a tensor that requires one.
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
                f"fastmpl::{name} has no forward-mode rule, so the tangent would be lost: call the op's public function."
            )
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    LIBRARY.impl(name, guard, "Autograd")  # type: ignore[no-untyped-call]

    _RUNS[op] = run
    return Op(op, run)
