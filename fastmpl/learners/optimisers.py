"""What all optimisers share: the clip by global norm, the scheduled rate, the skip of what is not finite.

Rates, norms, clip factors, counts and skips stay on the device, but for the optimisers that take numbers of the host
(`Row.skips`). The derivative of a step is the row's rule followed by the Jacobian of the clip.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastmpl.config import NetworkConfig
from fastmpl.learners.average import Average
from fastmpl.learners.protocol import Gradient, Update
from fastmpl.learners.rates import rate
from fastmpl.learners.rows import ROWS
from fastmpl.learners.rows.derivatives import Stepped
from fastmpl.learners.sgd_ema import SgdEma
from fastmpl_kernels.sgd_ema import global_norm

Tensors = list[Tensor]


class Optimiser:
    """Clips by global norm, skips what is not finite, steps at the scheduled rate."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], config: NetworkConfig, steps: int) -> None:
        self.parameters, self.config, self.steps = dict(parameters), config, steps
        self.row = ROWS[config.optimiser]
        device = next(iter(self.parameters.values())).device
        self.lr = torch.zeros((), device=device)
        # norms' weights and biases are not decayed
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        plain = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [
            {"params": some, "weight_decay": decay}
            for some, decay in ((decayed, config.weight_decay), (plain, 0.0))
            if some
        ]
        self.inner = self.row.build(groups, config)
        for group in self.inner.param_groups:  # not at construction, where torch reads the tensor
            group["lr"] = self.lr
        for p in self.parameters.values():  # present from the first step on, as a captured graph needs
            self.inner.state[p] = {name: torch.zeros_like(p) for name in self.row.state}
            if self.row.counts == "parameter":
                self.inner.state[p]["step"] = torch.zeros((), device=device)
        self.count = torch.zeros((), device=device)  # of steps taken, for optimisers whose groups count

    def step(self, gradients: Gradient, step: Int[Tensor, ""], *, keep: bool, average: Average | None = None) -> Update:
        """One step on these gradients, which it scales in place; see `Update`. Where the optimiser can, it updates
        the parameters' `average` in the same pass (`averages`).
        """
        listed = list(gradients.values())
        norm = global_norm(listed)
        finite = norm.isfinite()
        if self.config.clip > 0:
            torch._foreach_mul_(listed, (self.config.clip / norm).clamp(max=1.0))
        if average is not None and isinstance(self.inner, SgdEma):
            averages: dict[Tensor, Tensor] = {p: average.tensors[name] for name, p in self.parameters.items()}
            self.inner.average(averages, average.decay_at(step).to(self.lr.dtype))
        old = {name: p.detach().clone() for name, p in self.parameters.items()} if keep else None
        self.lr.copy_(self._rate(step))
        spoilt = keep and self.row.spoils_gradient
        for name, p in self.parameters.items():
            p.grad = gradients[name].clone() if spoilt else gradients[name]
        self._take(finite)
        for p in self.parameters.values():
            p.grad = None
        return Update(norm, finite.to(norm.dtype), self.lr.clone(), old, gradients if keep else None)

    def _take(self, finite: Bool[Tensor, ""]) -> None:
        """The step of the optimiser itself, or nothing where the gradient is not finite."""
        if self.row.skips == "host":
            self._take_on_host(finite)
            return
        skipped = (~finite).to(torch.float32)
        if self.row.skips == "device":
            self.inner.found_inf = skipped  # type: ignore[attr-defined]  # read by the kernels
            self.inner.step()
            return
        held = [*self.parameters.values(), *self.state().values()]
        before = [tensor.detach().clone() for tensor in held]
        for group in self.inner.param_groups:
            group["step"].copy_(self.count)
        self.count.add_(1)
        self.inner.step()
        for tensor, old in zip(held, before, strict=True):
            tensor.detach().copy_(torch.where(finite, tensor, old))

    def _take_on_host(self, finite: Bool[Tensor, ""]) -> None:
        """For optimisers that take the rate and the count as numbers: they wait for the device in any case."""
        if not bool(finite):
            return
        for group in self.inner.param_groups:
            group["lr"], group["step"] = float(self.lr), int(self.count)
        self.inner.step()
        self.count.add_(1)
        for group in self.inner.param_groups:
            group["lr"], group["step"] = self.lr, self.count

    @property
    def averages(self) -> frozenset[str]:
        """The parameters whose average a step updates itself."""
        return frozenset(self.parameters) if isinstance(self.inner, SgdEma) else frozenset()

    def derivative(self, update: Update, direction: Gradient) -> Gradient:
        """D v of `update`, the last step: first the optimiser's own rule, then the clip's Jacobian.

        With f = c / |g| < 1 active, v -> f (v - ghat <ghat, v>), ghat = g / |g|: f depends on g too. Where `direction`
        holds some of the parameters, the inner product runs over those.
        """
        assert update.gradients is not None and update.old is not None, "the update was not kept"
        group_of = {p: group for group in self.inner.param_groups for p in group["params"]}
        stepped = [
            Stepped(group_of[p], self.inner.state[p], update.old[name], update.gradients[name])
            for name, p in ((name, self.parameters[name]) for name in direction)
        ]
        moved = dict(zip(direction, self.row.derivative(stepped, list(direction.values())), strict=True))
        if self.config.clip == 0:
            return moved
        factor = (self.config.clip / update.norm).clamp(max=1.0)
        active = (factor < 1).to(factor.dtype)
        length = factor * update.norm  # of the gradients as they are kept, after the clip
        along = sum_of_products({name: update.gradients[name] for name in moved}, moved) / length.clamp(min=1e-30)
        return {
            name: factor * (v - active * along / length.clamp(min=1e-30) * update.gradients[name])
            for name, v in moved.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimiser, by `parameter/name`."""
        count = {"count": self.count} if self.row.counts == "group" else {}
        return count | {
            f"{name}/{key}": value for name, p in self.parameters.items() for key, value in self.inner.state[p].items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        for key, value in self.state().items():
            value.copy_(state[key])

    def _rate(self, step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        c = self.config
        return rate(step, peak=c.lr, steps=self.steps, warmup=c.warmup, wait=c.wait, schedule=c.schedule)


def sum_of_products(a: Gradient, b: Gradient) -> Float[Tensor, ""]:
    """<a, b> over the parameters of `b`: two copies and one product, whatever the number of parameters."""
    return torch.dot(_flat([a[name] for name in b]), _flat(list(b.values())))


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
