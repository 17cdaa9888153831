"""Batch norm with its activation as one module, and a function that swaps it into any model.

Parameters and buffers have the names of nn.BatchNorm2d's, so a state dict of the model loads before and after the swap. The
activation becomes part of the norm, and an nn.Identity takes its place, so the indices and names of all other modules stay.
A swap cannot see an activation that is called as a function, and leaves it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fastmpl_kernels.batch_norm_act import batch_norm_act
from fastmpl_kernels.batch_norm_act.add import add_batch_norm_act, add_in_place
from fastmpl_kernels.batch_norm_act.reference import activate
from fastmpl_kernels.batch_norm_act.settings import Activation, Reduce


class BatchNormAct2d(nn.BatchNorm2d):
    """nn.BatchNorm2d followed by an activation.

    In training mode it uses the statistics of the batch and moves the running ones; with `track_running_stats` set to
    False it uses those of the batch and leaves the running ones alone. In evaluation it uses the running ones. `reduce`
    (see Reduce) makes the batch's statistics those of all ranks. `forward` takes a residual that is added before the
    activation, or an addend that is added before the norm.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        activation: Activation = "leaky_relu",
        slope: float = 0.01,
        reduce: Reduce | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.activation: Activation = activation
        self.slope = slope
        self.reduce = reduce

    def forward(
        self,
        input: Float[Tensor, "N C H W"],
        residual: Float[Tensor, "N C H W"] | None = None,
        *,
        addend: Float[Tensor, "N C H W"] | None = None,
    ) -> Any:
        """y; with an addend (x + addend, y), where y is of the sum (see add_batch_norm_act)."""
        assert residual is None or addend is None, "a residual is added behind the norm, an addend before it"
        if not self.training and self.running_mean is not None:
            total = input if addend is None else add_in_place(input, addend)
            z = F.batch_norm(total, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            y = activate(z if residual is None else z + residual, self.activation, self.slope)
            return y if addend is None else (total, y)
        if addend is None:
            return batch_norm_act(input, self.weight, self.bias, residual=residual, **self._settings())
        return add_batch_norm_act(input, addend, self.weight, self.bias, **self._settings())

    def _settings(self) -> dict[str, Any]:
        """The arguments that the norm itself holds; counts the batch."""
        update = self.training and self.track_running_stats and self.running_mean is not None
        momentum = 0.0 if self.momentum is None else self.momentum
        if update and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a cumulative average reads the count on the host, as torch's does
                momentum = 1.0 / float(self.num_batches_tracked)
        return {
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "update_running": update,
            "momentum": momentum,
            "eps": self.eps,
            "activation": self.activation,
            "slope": self.slope,
            "reduce": self.reduce,
        }

    def extra_repr(self) -> str:
        slope = f", slope={self.slope}" if self.activation == "leaky_relu" else ""
        return f"{nn.BatchNorm2d.extra_repr(self)}, activation={self.activation}{slope}"  # type: ignore[no-untyped-call]


def activation_of(module: nn.Module) -> tuple[Activation, float] | None:
    """The name and slope of an activation module; None for one that is not known here."""
    if type(module) is nn.ReLU:
        return "relu", 0.0
    if type(module) is nn.LeakyReLU:
        return "leaky_relu", module.negative_slope
    if type(module) is nn.SiLU or (type(module).__name__ == "Swish" and type(module).__module__.startswith("timm.")):
        return "silu", 0.0
    return ("none", 0.0) if type(module) is nn.Identity else None


def _fuse_norm(norm: nn.BatchNorm2d, activation: Activation, slope: float, reduce: Reduce | None) -> BatchNormAct2d:
    """A fused norm that shares the parameters and buffers of `norm`."""
    fused = BatchNormAct2d(
        norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False,
        activation=activation, slope=slope, reduce=reduce,
    )  # fmt: skip
    fused.affine, fused.track_running_stats = norm.affine, norm.track_running_stats
    fused.weight, fused.bias = norm.weight, norm.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(fused, name, getattr(norm, name))
    return fused.train(norm.training)


def _is_timm_norm_act(module: nn.Module) -> bool:
    """Whether it is timm's own pair of norm and activation; asked by name, because timm need not be installed."""
    return type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm.")


def _fuse_timm(module: Any, reduce: Reduce | None) -> BatchNormAct2d | None:
    known = activation_of(module.act) if type(module.drop) is nn.Identity else None
    return None if known is None else _fuse_norm(module, *known, reduce)


def _runs_in_order(parent: nn.Module) -> bool:
    """Whether each child runs directly after the one before it: an nn.Sequential that has no forward of its own."""
    return isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward


def _next_activation(parent: nn.Module, name: str) -> str | None:
    """The name of the activation that certainly runs directly after the norm `name`, or None.

    In an nn.Sequential the next module runs next. Elsewhere only names tell (act1 after bn1), and only timm's models and
    this project's are known to keep to them. (A torchvision block uses its one `relu` three times, once after a sum.)
    """
    names = list(parent._modules)
    if _runs_in_order(parent):
        after = names[names.index(name) + 1 :]
        return after[0] if after else None
    candidate = name.replace("bn", "act")
    keeps = type(parent).__module__.startswith(("timm.models.", "fastmpl."))
    return candidate if keeps and name.startswith("bn") and candidate in names else None


def _follows_sum(parent: nn.Module, activation: str) -> bool:
    """Whether a sum stands between the norm and its activation: timm's residual blocks add their shortcut there."""
    names = [n for n in parent._modules if n.startswith("act")]
    return not _runs_in_order(parent) and hasattr(parent, "downsample") and activation == names[-1]


def _fuse_pair(parent: nn.Module, name: str, norm: nn.BatchNorm2d, reduce: Reduce | None) -> BatchNormAct2d:
    following = _next_activation(parent, name)
    between = getattr(parent, name.replace("bn", "drop_block"), None) if name.startswith("bn") else None
    apart = following is None or _follows_sum(parent, following) or not isinstance(between, nn.Identity | None)
    known = None if following is None or apart else activation_of(parent._modules[following] or nn.Identity())
    if following is None or known is None or known[0] == "none":
        return _fuse_norm(norm, "none", 0.0, reduce)
    parent._modules[following] = nn.Identity()
    return _fuse_norm(norm, *known, reduce)


def fuse_batch_norm_act(module: nn.Module, reduce: Reduce | None = None) -> int:
    """Swaps every nn.BatchNorm2d of `module`, with the activation that follows it, for a BatchNormAct2d, in place.

    Returns how many norms now do an activation's work. A norm whose activation is not known to follow directly is
    swapped without one. Parameters and buffers stay the same objects, so an optimiser built before stays valid. Module
    names and state-dict keys stay; subclasses of nn.BatchNorm2d other than timm's pair are left alone.
    """
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            fused: BatchNormAct2d | None = None
            if _is_timm_norm_act(child):
                fused = _fuse_timm(child, reduce)
            elif type(child) is nn.BatchNorm2d:
                fused = _fuse_pair(parent, name, child, reduce)
            if fused is not None:
                parent._modules[name] = fused
                count += fused.activation != "none"
    return count
