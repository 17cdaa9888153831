"""A learner in one process, or on data-parallel ranks that each hold the whole network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastmpl.config import NetworkConfig
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.learners.arithmetic import Precision, autocast, full_precision
from fastmpl.learners.average import Average
from fastmpl.learners.blocks import names_in_last_blocks
from fastmpl.learners.compiled import compile_network
from fastmpl.learners.forward_rules import use_forward_rules
from fastmpl.learners.kept_inputs import KeptInputs, can_keep_inputs
from fastmpl.learners.layers import freeze_layers, layer_rates, learning_tensors, set_training
from fastmpl.learners.optimiser import Optimiser, sum_of_products
from fastmpl.learners.passes import difference_step, dual, mean_gradient, tangent_of, to_float32
from fastmpl.learners.protocol import Forward, Gradient, Loss, LossPass, TangentPass, Update
from fastmpl.learners.recompute import recompute_blocks
from fastmpl.learners.running_statistics import RunningStatistics, mean_over_ranks, per_rank_names
from fastmpl.learners.shared_prefix import SharedPrefix
from fastmpl.learners.state import Placement
from fastmpl.learners.tangent_parts import call_in_parts
from fastmpl.models.attention import use_math_attention
from fastmpl.models.norms import use_batch_statistics
from fastmpl.models.stand_ins import call_with
from fastmpl.models.stochastic import list_draws, write_draws
from fastmpl.models.sync_norm import synchronise
from fastmpl_kernels.rows import unit
from fastmpl_kernels.sgd_ema import inner_product


class PlainLearner:
    """See `fastmpl.learners.protocol.RunLearner`."""

    def __init__(
        self,
        module: nn.Module,
        config: NetworkConfig,
        *,
        steps: int,
        precision: Precision = "float32",
        average: float = 0.0,
        tangent: Literal["jvp", "difference"] = "jvp",
        depth: int = 0,
        tangent_images: int = 0,
        recompute: bool = False,
        compiler: str = "",
        static_gradients: bool | None = None,
        shares_prefix: bool = False,
        keeps_inputs: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        """tangent_images: most images of one forward-mode pass (`images_at_once`); 0: all in one. shares_prefix: whether
        frozen first layers run once for passes of a step that see the same images (`SharedPrefix`). keeps_inputs: whether
        the tangent takes from the pass that learned what both compute (`KeptInputs`), where the network's form allows it.

        compiler: the backend of torch.compile for passes without a tangent; none where empty. static_gradients: whether
        each step copies its gradients to addresses that stay, as a CUDA graph needs; None: where the device is a GPU.
        """
        self.frozen = freeze_layers(module, config)
        self.module = set_training(module, self.frozen)
        self.call: Forward = compile_network(module, compiler) if compiler else module.__call__
        synchronise(module, ranks)
        self.draws = list_draws(module)
        self.recompute = recompute
        self.statistics = RunningStatistics(module)
        self.prefix = SharedPrefix(module, self.frozen if shares_prefix and not compiler and not recompute else [])
        self.kept: KeptInputs | None = None
        self.keep_inputs(keeps_inputs and not compiler)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimiser = Optimiser(self.parameters, config, steps, rates=layer_rates(module, config))
        self.average = Average(learning_tensors(module), average) if average > 0 else None
        self.precision, self.tangent_form, self.ranks = precision, tangent, ranks
        self.tangent_images = tangent_images
        self.moving = names_in_last_blocks(module, depth) & self.parameters.keys()  # what the tangent moves
        self.device = next(iter(self.parameters.values())).device
        static = self.device.type == "cuda" if static_gradients is None else static_gradients
        self.buffers = {name: torch.zeros_like(p) for name, p in self.parameters.items()} if static else None

    def keep_inputs(self, wanted: bool) -> None:
        """Whether the tangent takes from the pass that learned what both compute, where the network's form allows it."""
        self.kept = KeptInputs(self.module) if wanted and self.can_keep_inputs(self.recompute) else None

    def can_keep_inputs(self, recompute: bool) -> bool:
        """Whether `KeptInputs` serves this network, with or without its blocks recomputed."""
        return not (recompute or self.frozen) and can_keep_inputs(self.module)

    def forward(
        self, images: Float[Tensor, "N *image"], draw: Int[Tensor, ""], *, keep: bool = True
    ) -> Float[Tensor, "N K"]:
        write_draws(self.draws, draw)
        recomputed = recompute_blocks(self.module, draw) if self.recompute else nullcontext()
        shared = self.prefix.share(images) if keep else nullcontext()
        kept = self.kept.keep(images) if keep and self.kept is not None else nullcontext()
        with self._autocast(), recomputed, self.statistics.record(), shared, kept:
            return to_float32(self.call(images))

    @torch.no_grad()
    def observe(
        self, images: Float[Tensor, "N *image"], draw: Int[Tensor, ""], *, precise: bool = False
    ) -> Float[Tensor, "N K"]:
        write_draws(self.draws, draw)
        images = to_float32(images) if precise else images  # a loader may give bf16
        precision, statistics = full_precision(precise), use_batch_statistics(self.module)
        with self._autocast(precise), precision, statistics, self.prefix.share(images):
            return to_float32(self.call(images))

    @torch.no_grad()
    def infer(self, images: Float[Tensor, "N *image"]) -> Float[Tensor, "N K"]:
        self.module.eval()
        try:
            with self._autocast():
                return to_float32(self.module(images))
        finally:
            set_training(self.module, self.frozen)

    def accumulate(self, loss: Float[Tensor, ""]) -> None:
        loss.backward(unit(loss))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def apply(self, step: Int[Tensor, ""], *, keep: bool = False) -> Update:
        gradients = self._collect_gradients()
        self.ranks.all_reduce_mean_(list(gradients.values()))
        update = self.optimiser.step(gradients, step, keep=keep, average=self.average)
        self.statistics.settle(update.applied)
        self.prefix.end_step()
        if self.average is not None:
            done = self.optimiser.averaged_names
            self.average.update(self.module.state_dict(), step, update.applied, done=done)
        return update

    def _collect_gradients(self) -> Gradient:
        """What was accumulated: as autograd left it, or copied into the buffers."""
        found = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in self.parameters.items()}
        if self.buffers is None:
            return found
        # a copy costs less than accumulation in place: autograd would zero, read and write the buffer a tensor at a time
        torch._foreach_copy_(list(self.buffers.values()), list(found.values()))
        for p in self.parameters.values():
            p.grad = None
        return self.buffers

    def abandon_step(self) -> None:
        """Forgets what a step left that was not executed: a capture that failed. Tensors of the state are as before it."""
        for p in self.parameters.values():
            p.grad = None
        self.statistics.abandon()
        self.prefix.forget()
        if self.kept is not None:
            self.kept.forget()

    def gradient(self, passes: Sequence[LossPass]) -> Gradient:
        held = {name: p if name in self.moving else p.detach() for name, p in self.parameters.items()}
        moving = {name: p for name, p in held.items() if name in self.moving}

        def one(images: Tensor, loss: Loss, draw: Tensor) -> tuple[Tensor, ...]:
            write_draws(self.draws, draw)
            with self._autocast(), use_batch_statistics(self.module):
                value = loss(to_float32(call_with(self.module, held, images)))
            # a parameter that the pass does not use has the gradient 0, as in the pass that learns
            return torch.autograd.grad(value, list(moving.values()), unit(value), materialize_grads=True)

        gradients = dict(zip(moving, mean_gradient(one(*each) for each in passes), strict=True))
        self.ranks.all_reduce_mean_(list(gradients.values()))
        return gradients

    @torch.no_grad()
    def tangents(self, update: Update, passes: Sequence[TangentPass], gradient: Gradient) -> list[Float[Tensor, "N K"]]:
        assert update.old is not None, "the update was not kept"
        direction = self.optimiser.derivative(update, gradient)
        with self._autocast(), use_batch_statistics(self.module):
            if self.tangent_form == "difference":
                return self._differences(update.old, direction, passes)
            with use_math_attention(self.module), use_forward_rules(self.module), forward_ad.dual_level():
                duals = {name: dual(p, direction.get(name)) for name, p in update.old.items()}
                return [self._push(duals, each) for each in passes]

    def loss_decrease(self, update: Update, gradient: Gradient) -> Float[Tensor, ""]:
        assert update.old is not None
        old, new = ([held[name].detach() for name in gradient] for held in (update.old, self.parameters))
        return sum_of_products(gradient, dict(zip(gradient, torch._foreach_sub(old, new), strict=True)))

    @torch.no_grad()
    def mean(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        if self.ranks.size == 1:
            return value
        value = value.clone()
        self.ranks.all_reduce_mean_([value])
        return value

    def permute(self, rows: Float[Tensor, "U *K"], order: Callable[[Tensor], Tensor]) -> Float[Tensor, "U *K"]:
        return self.ranks.take_own_rows(order(self.ranks.all_gather(rows)))

    def placement(self) -> Placement:
        return Placement(per_rank=per_rank_names(self.module, self.state()))

    def use_mean_statistics(self) -> AbstractContextManager[None]:
        return mean_over_ranks(self, self.ranks)

    @property
    def has_average(self) -> bool:
        return self.average is not None

    def state(self) -> dict[str, Tensor]:
        state = {f"module/{name}": value for name, value in self.module.state_dict().items()}
        state |= {f"optimiser/{name}": value for name, value in self.optimiser.state().items()}
        if self.average is not None:
            state |= {f"average/{name}": value for name, value in self.average.tensors.items()}
        return state

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.prefix.forget()
        for name, value in self.state().items():
            value.copy_(tensors[name])

    @contextmanager
    def use_average(self) -> Iterator[nn.Module]:
        assert self.average is not None, "this learner keeps no average"
        current = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(current | self.average.tensors)
        try:
            yield self.module
        finally:
            self.module.load_state_dict(current)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.state_dict().items()

    def successor(self, config: NetworkConfig, *, steps: int) -> "PlainLearner":
        module = deepcopy(self.module)
        if self.average is not None:
            module.load_state_dict(module.state_dict() | self.average.tensors)
        return PlainLearner(module, config, steps=steps, precision=self.precision, ranks=self.ranks)

    def replace_call(self, wrap: Callable[[Forward], Forward]) -> None:
        self.call, self.kept = wrap(self.call), None  # what it replays runs no module

    def close(self) -> None:
        """Nothing to free."""

    def _push(self, duals: dict[str, Tensor], each: TangentPass) -> Tensor:
        """The tangent of a pass's logits, in forward mode."""
        write_draws(self.draws, each.draw)

        def push(images: Tensor) -> Tensor:
            with self.prefix.share(images):
                return to_float32(tangent_of(call_with(self.module, duals, images)))

        if self.kept is not None and self.kept.are_of(each.images):
            with self.kept.use():
                return push(each.images)
        if self.kept is not None:
            self.kept.forget()
        moved = call_in_parts(self.module, each.images, self.tangent_images, push)
        self.prefix.forget(each.images)
        return moved

    def _differences(self, old: Gradient, direction: Gradient, passes: Sequence[TangentPass]) -> list[Tensor]:
        """(S(theta + d v) - S(theta)) / d of each pass, one-sided."""
        start, now = [old[name] for name in direction], [self.parameters[name].detach() for name in direction]
        vectors = list(direction.values())
        norms = [inner_product(x, x).sqrt() for x in (vectors, start, list(torch._foreach_sub(start, now)))]
        step = difference_step(*norms)
        moved = torch._foreach_add(start, torch._foreach_mul(vectors, step))
        parameters, found = old | dict(zip(direction, moved, strict=True)), []
        for images, logits, draw in passes:
            write_draws(self.draws, draw)
            with self.prefix.share(images):
                found.append((to_float32(call_with(self.module, parameters, images)) - logits) / step)
            self.prefix.forget(images)
        return found

    def _autocast(self, precise: bool = False) -> AbstractContextManager[object]:
        return autocast(self.device, "float32" if precise else self.precision)
