"""Forward-mode rules of layer norm, softmax and linear layers, in fewer operators than torch's own.

torch pushes a tangent through a layer norm by some twenty element-wise operators on tensors of the size of the activations,
and adds the two products of a linear layer by two more. But the Jacobians J of x -> (x - mean(x)) / std(x) and of softmax
are symmetric, so that J dx is what torch's backward operator gives for the cotangent dx, in one pass:

    layer norm   y = w x^ + b, x^ = (x - mean) / std      dy = w J dx + x^ dw + db
    softmax      y = softmax(x)                           dy = J dx
    linear       y = x w^T + b                            dy = x dw^T + db + dx w^T, the last product added in place

The rules hold for calls of torch's functions inside `use_forward_rules`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from fastmpl.learners.passes import dual


def _unpack(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """A value and its tangent."""
    primal, tangent = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
    return primal, tangent


def _unpack_optional(value: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if value is None else _unpack(value)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As torch.nn.functional.layer_norm. The tangent of bf16 values is computed in float32."""
    (x, dx), (w, dw), (b, db) = _unpack(input), _unpack_optional(weight), _unpack_optional(bias)
    y = F.layer_norm(x, normalized_shape, w, b, eps)
    terms: list[Tensor] = []
    if dx is not None or dw is not None:
        shape, value = list(normalized_shape), x.float() if x.dtype == torch.bfloat16 else x
        normal, mean, rstd = torch.native_layer_norm(value, shape, None, None, eps)
        if dx is not None:
            asked = [True, False, False]
            pushed = torch.ops.aten.native_layer_norm_backward(
                dx.to(value.dtype), value, shape, mean, rstd, None, None, asked
            )[0]
            terms.append(pushed if w is None else pushed * w)
        if dw is not None:
            terms = [torch.addcmul(terms[0], normal, dw) if terms else normal * dw]
    if db is not None:
        terms = [terms[0] + db if terms else db.expand(y.shape).clone()]
    return dual(y, terms[0].to(y.dtype) if terms else None)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As torch.nn.functional.linear."""
    (x, dx), (w, dw), (b, db) = _unpack(input), _unpack(weight), _unpack_optional(bias)
    y = F.linear(x, w, b)
    if dw is None:
        tangent = db.expand(y.shape).to(y.dtype, copy=True) if dx is None and db is not None else None
        return dual(y, tangent if dx is None else F.linear(dx, w, db))
    tangent = F.linear(x, dw, db)
    if dx is None:
        return dual(y, tangent)
    if tangent.is_contiguous() and tangent.dtype == dx.dtype == w.dtype:
        tangent.view(-1, len(w)).addmm_(dx.reshape(-1, w.shape[1]), w.t())
        return dual(y, tangent)
    return dual(y, tangent + F.linear(dx, w))  # under autocast, which casts no operation in place


def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """As torch.softmax."""
    x, dx = _unpack(input)
    y = torch.softmax(x, dim, dtype=dtype)
    return dual(y, None if dx is None else torch._softmax_backward_data(dx.to(y.dtype), y, dim, y.dtype))


def softmax_of_layer(input: Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """As torch.nn.functional.softmax, which torch.nn.Softmax calls."""
    return softmax(input, dim, dtype)


RULES: Final[dict[Callable[..., Any], Callable[..., Tensor]]] = {
    F.layer_norm: layer_norm,
    F.linear: linear,
    F.softmax: softmax_of_layer,
    torch.softmax: softmax,
    Tensor.softmax: softmax,
}


class _ForwardRules(TorchFunctionMode):
    """Calls a rule in the place of the function that it is of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return RULES.get(func, func)(*args, **(kwargs or {}))


def use_forward_rules(module: nn.Module) -> AbstractContextManager[object]:
    """The rules hold within the block if `module` has layer norms; other networks keep torch's own."""
    has_layer_norm = any(isinstance(layer, nn.LayerNorm) for layer in module.modules())
    return _ForwardRules() if has_layer_norm else nullcontext()
