"""batch_norm_act as plain formulas, differentiable by torch in both modes; exact in float64.

The statistics take two passes, and no formula is rearranged. torch.compile traces this implementation. The tests measure
every other one against it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fastmpl_kernels.batch_norm_act.settings import Activation


def activate(z: Tensor, activation: Activation, slope: float) -> Tensor:
    """act(z); `slope` is the leaky ReLU's."""
    if activation == "relu":
        return F.relu(z)
    if activation == "leaky_relu":
        return F.leaky_relu(z, slope)
    if activation == "silu":
        return F.silu(z)
    return z


def reference(
    x: Float[Tensor, "N C *pixels"],
    weight: Float[Tensor, "C"],
    bias: Float[Tensor, "C"],
    *,
    eps: float,
    activation: Activation,
    slope: float,
    residual: Float[Tensor, "N C *pixels"] | None = None,
) -> tuple[Float[Tensor, "N C *pixels"], Float[Tensor, "C"], Float[Tensor, "C"]]:
    """Returns y in x's type, and the mean and the biased variance of x over everything but channels."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dims = [0, *range(2, x.dim())]
    shape = [1, -1] + [1] * (x.dim() - 2)
    values = x.to(wide)
    mean = values.mean(dims)
    centred = values - mean.view(shape)
    var = centred.square().mean(dims)
    z = centred * (var + eps).rsqrt().view(shape) * weight.to(wide).view(shape) + bias.to(wide).view(shape)
    if residual is not None:
        z = z + residual.to(wide)
    return activate(z, activation, slope).to(x.dtype), mean.detach(), var.detach()


def move_running(
    running_mean: Float[Tensor, "C"],
    running_var: Float[Tensor, "C"],
    mean: Tensor,
    unbiased_var: Tensor,
    momentum: float,
) -> None:
    """Moves the averages that evaluation uses, in place.

    A channel whose new average is not finite keeps the old one: one activation of 1e30 overflows the variance, and the
    average would stay infinite for good, in every later checkpoint.
    """
    with torch.no_grad():
        new_mean = running_mean.lerp(mean.to(running_mean.dtype), momentum)
        new_var = running_var.lerp(unbiased_var.to(running_var.dtype), momentum)
        keep_finite(running_mean, running_var, new_mean, new_var)


def keep_finite(running_mean: Tensor, running_var: Tensor, new_mean: Tensor, new_var: Tensor) -> None:
    """Writes the new averages into the running ones, in the channels where both are finite."""
    finite = new_mean.isfinite() & new_var.isfinite()
    running_mean.copy_(torch.where(finite, new_mean, running_mean))
    running_var.copy_(torch.where(finite, new_var, running_var))
