"""The library ops of add_batch_norm_act: train, backward and dual_train of phases.py with a sum at their beginning.

They have no form for several ranks, whose statistics need a message between the pass that sums and the one that writes.
"""

from typing import Any

import torch
from torch import Tensor

from fastmpl_kernels.batch_norm_act.implementations import kernels_for
from fastmpl_kernels.batch_norm_act.library_ops import dual_like, forward_like, unflatten
from fastmpl_kernels.batch_norm_act.settings import Addend, Norm, Tangents
from fastmpl_kernels.ops import define


def _add_train(x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Any:
    return kernels_for(x).train(x, *unflatten(weight, bias, None, *rest), addend)


def _add_backward(
    dy: Tensor, elsewhere: Tensor, x: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, *rest: Any
) -> Any:
    dx, _, *of_parameters = kernels_for(dy).backward(dy, x, moments, Norm(weight, bias, None, *rest), elsewhere)
    return dx, *of_parameters


def _add_dual_train(
    x: Tensor,
    x_tangent: Tensor,
    addend: Tensor,
    addend_tangent: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor,
    *rest: Any,
) -> Any:
    tangents = Tangents(x_tangent, weight_tangent, bias_tangent, None)
    norm, running = unflatten(weight, bias, None, *rest)
    return kernels_for(x).dual_train(x, tangents, norm, running, Addend(addend, addend_tangent))


def _add_backward_like(dy: Tensor, elsewhere: Tensor, x: Tensor, moments: Tensor, *_: Any) -> Any:
    return torch.empty_like(x), torch.empty_like(moments[0]), torch.empty_like(moments[0])


bn_add_train = define(
    "bn_add_train(Tensor(a!) x, Tensor addend, Tensor weight, Tensor bias, Tensor(b!)? running_mean, "
    "Tensor(c!)? running_var, float momentum, float eps, int activation, float slope) -> (Tensor, Tensor)",
    _add_train,
    forward_like,
)
bn_add_backward = define(
    "bn_add_backward(Tensor dy, Tensor elsewhere, Tensor x, Tensor moments, Tensor weight, Tensor bias, "
    "int activation, float slope) -> (Tensor, Tensor, Tensor)",
    _add_backward,
    _add_backward_like,
)
bn_add_dual_train = define(
    "bn_add_dual_train(Tensor(a!) x, Tensor(b!) x_tangent, Tensor addend, Tensor addend_tangent, Tensor weight, "
    "Tensor bias, Tensor weight_tangent, Tensor bias_tangent, Tensor(c!)? running_mean, Tensor(d!)? running_var, "
    "float momentum, float eps, int activation, float slope) -> (Tensor, Tensor)",
    _add_dual_train,
    dual_like,
)
