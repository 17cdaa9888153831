"""How an op enters torch: low-level library ops in the namespace `fastmpl`, with a guard against lost derivatives.

A low-level op computes and knows nothing of autograd; a public function wraps it in an `autograd.Function` that has a
backward and a `jvp`. `torch.library.custom_op` would do both at once, but it drops forward-mode tangents without a word
(a tangent of exactly zero); here a bare op that would lose a tangent raises instead.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("fastmpl", "FRAGMENT")  # type: ignore[no-untyped-call]


def _has_tangent(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_tangent(item) for item in value)
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value, level=0).tangent is not None  # type: ignore[no-untyped-call]


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Defines `fastmpl::<schema>`, computed by `run` on every device and by `fake` where only shapes are known.

    Returns the op. Called outside an `autograd.Function` on a tensor that carries a tangent, it raises
    NotImplementedError; called on a tensor that requires a gradient, its result has none.
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
    return op
