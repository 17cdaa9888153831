"""What all optimisers share: the clip by global norm, the scheduled rate, the skip of what is not finite.

Rates, norms, clip factors, counts and skips stay on the device, but for the optimisers that take numbers of the host
(`OptimiserRow.skips`). The derivative of a step is the row's rule followed by the Jacobian of the clip.
"""

import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fastmpl.config import NetworkConfig
from fastmpl.learners.average import Average
from fastmpl.learners.layers import LayerRate
from fastmpl.learners.optimiser_rows import OPTIMISERS
from fastmpl.learners.optimiser_rows.derivatives import SteppedParameter
from fastmpl.learners.protocol import Gradient, Update
from fastmpl.learners.rates import rate
from fastmpl_kernels.sgd_ema import global_norm, inner_product

Tensors = list[Tensor]
Total = Callable[[Float[Tensor, ""]], Float[Tensor, ""]]


class Optimiser:
    """Clips by global norm, skips what is not finite, steps at the scheduled rate.

    `parameters` may be a rank's pieces of a network that ranks share. Then `total` sums a tensor over the ranks, and
    `decayed` names the parameters that weight decay shrinks, which their pieces' shapes no longer tell.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        config: NetworkConfig,
        steps: int,
        *,
        total: Total | None = None,
        decayed: Collection[str] | None = None,
        rates: Mapping[str, LayerRate] = MappingProxyType({}),
    ) -> None:
        """rates: by parameter; the scheduled rate for one that is missing."""
        self.parameters, self.config, self.steps, self.total = dict(parameters), config, steps, total
        self.row = OPTIMISERS[config.optimiser]
        device = next(iter(self.parameters.values())).device
        names = decayed_names(self.parameters) if decayed is None else decayed
        rate_of = {name: rates.get(name, LayerRate()) for name in self.parameters}
        kinds = list(dict.fromkeys(rate_of.values()))
        self.is_uniform = kinds == [LayerRate()]
        self.lrs = [torch.zeros((), device=device) for _ in kinds]  # each at an address that stays
        self.factors = torch.tensor([kind.factor for kind in kinds], device=device)
        self.waits = torch.tensor([kind.waits for kind in kinds], device=device)
        found = [
            ({"params": some, "weight_decay": config.weight_decay if decays else 0.0}, lr)
            for decays in (True, False)
            for kind, lr in zip(kinds, self.lrs, strict=True)
            if (some := [p for n, p in self.parameters.items() if rate_of[n] == kind and (n in names) == decays])
        ]
        self.inner = self.row.build([group for group, _ in found], config)
        self.group_lrs = [lr for _, lr in found]
        self._lend_rates()  # not at construction, where torch reads the tensor
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
        if self.total is not None:
            norm = self.total(norm.square()).sqrt()
        finite = norm < math.inf  # false for NaN too; isfinite is four operators
        if self.config.clip > 0:
            torch._foreach_mul_(listed, (self.config.clip / norm).clamp(max=1.0))
        if average is not None and self.row.lend_averages is not None:
            averages: dict[Tensor, Tensor] = {p: average.tensors[name] for name, p in self.parameters.items()}
            self.row.lend_averages(self.inner, averages, average.decay_at(step).to(self.factors.dtype))
        old = dict(zip(self.parameters, _copy(list(self.parameters.values())), strict=True)) if keep else None
        rate = self._rate(step)
        self._set_rates(rate, step)
        spoilt = keep and self.row.spoils_gradient
        for name, p in self.parameters.items():
            p.grad = gradients[name].clone() if spoilt else gradients[name]
        self._step_or_skip(finite)
        for p in self.parameters.values():
            p.grad = None
        return Update(norm, finite.to(norm.dtype), rate, old, gradients if keep else None)

    def _step_or_skip(self, finite: Bool[Tensor, ""]) -> None:
        """Steps the optimiser itself; changes nothing where the gradient is not finite."""
        if self.row.skips == "host":
            self._step_or_skip_on_host(finite)
            return
        skipped = (~finite).to(torch.float32)
        if self.row.skips == "device":
            self.inner.found_inf = skipped  # type: ignore[attr-defined]  # read by the kernels
            self.inner.step()
            self.inner.found_inf = None  # type: ignore[attr-defined]  # no tensor of this step is kept
            return
        held = [*self.parameters.values(), *self.state().values()]
        before = [tensor.detach().clone() for tensor in held]
        for group in self.inner.param_groups:
            group["step"].copy_(self.count)
        self.count.add_(1)
        self.inner.step()
        for tensor, old in zip(held, before, strict=True):
            tensor.detach().copy_(torch.where(finite, tensor, old))

    def _step_or_skip_on_host(self, finite: Bool[Tensor, ""]) -> None:
        """For optimisers that take the rate and the count as numbers of the host, and so wait for the device anyway."""
        if not bool(finite):
            return
        for group, lr in zip(self.inner.param_groups, self.group_lrs, strict=True):
            group["lr"], group["step"] = float(lr), int(self.count)
        self.inner.step()
        self.count.add_(1)
        self._lend_rates()
        for group in self.inner.param_groups:
            group["step"] = self.count

    def _lend_rates(self) -> None:
        """Every group reads its rate from a tensor that `_set_rates` writes."""
        for group, lr in zip(self.inner.param_groups, self.group_lrs, strict=True):
            group["lr"] = lr

    def _set_rates(self, rate: Float[Tensor, ""], step: Int[Tensor, ""]) -> None:
        """The scheduled rate times each layer's factor, and 0 for layers that wait; nothing is read on the host."""
        if self.is_uniform:
            self.lrs[0].copy_(rate)
            return
        scaled = rate.to(self.factors.device) * self.factors
        if self.config.freeze_steps > 0:
            early = step.to(self.factors.device) < self.config.freeze_steps
            scaled = torch.where(self.waits & early, 0.0, scaled)
        torch._foreach_copy_(self.lrs, list(scaled.unbind()))

    @property
    def averaged_names(self) -> frozenset[str]:
        """The parameters whose average a step updates itself."""
        return frozenset(self.parameters) if self.row.lend_averages is not None else frozenset()

    def derivative(self, update: Update, direction: Gradient) -> Gradient:
        """D v of `update`, the last step, with v = `direction` and D = (dF/dg)^T of the update theta' = theta - F(g).

        F clips first and steps then, so the transpose takes the optimiser's rule first and then the clip's Jacobian: with
        f = c / |g| < 1 active, v -> f (v - ghat <ghat, v>), ghat = g / |g|, as f depends on g too. Where `direction`
        holds some of the parameters, the inner product runs over those.
        """
        assert update.gradients is not None and update.old is not None, "the update was not kept"
        group_of = {p: group for group in self.inner.param_groups for p in group["params"]}
        stepped = [
            SteppedParameter(group_of[p], self.inner.state[p], update.old[name], update.gradients[name])
            for name, p in ((name, self.parameters[name]) for name in direction)
        ]
        vectors = self.row.derivative(stepped, list(direction.values()))
        moved = dict(zip(direction, vectors, strict=True))
        if self.config.clip == 0:
            return moved
        factor = (self.config.clip / update.norm).clamp(max=1.0)
        active = (factor < 1).to(factor.dtype)
        length = factor * update.norm  # of the gradients as they are kept, after the clip
        along = sum_of_products(update.gradients, moved)
        along = (along if self.total is None else self.total(along)) / length.clamp(min=1e-30)
        if not moved:  # a rank may hold nothing of a direction
            return moved
        radial = torch._foreach_mul([each.gradient for each in stepped], active * along / length.clamp(min=1e-30))
        return dict(zip(moved, torch._foreach_mul(torch._foreach_sub(vectors, radial), factor), strict=True))

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


def _copy(tensors: Tensors) -> Tensors:
    """Copies without a graph, in few launches."""
    copies = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, [tensor.detach() for tensor in tensors])
    return copies


def sum_of_products(a: Gradient, b: Gradient) -> Float[Tensor, ""]:
    """<a, b> over the parameters of `b`."""
    if not b:  # a rank may hold nothing of a direction
        return next(iter(a.values())).new_zeros(())
    return inner_product([a[name] for name in b], list(b.values()))


def decayed_names(parameters: Mapping[str, Tensor]) -> set[str]:
    """The names that weight decay shrinks: norms' weights and biases are left out."""
    return {name for name, p in parameters.items() if p.ndim > 1}
