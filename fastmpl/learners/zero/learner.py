"""The learner whose network DeepSpeed shards. See `fastmpl.learners.protocol` for what it must do.

Gradients, updates and averages are this rank's pieces of parameters, by the parameter's name; what is summed over them
is summed over ranks. The optimiser, its clip, its skips and its derivative are the plain learner's, on pieces: all its
rows are element-wise. The engine forms graphs, reduces gradients, and gathers parameters where its stage shards them.
Passes at parameters that are not the network's own go around it (`twin_passes`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fastmpl.config import NetworkConfig, SystemConfig
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.learners.arithmetic import full_precision
from fastmpl.learners.average import Average
from fastmpl.learners.blocks import names_in_last_blocks
from fastmpl.learners.layers import freeze_layers, layer_rates, set_training
from fastmpl.learners.optimiser import Optimiser, decayed_names, sum_of_products
from fastmpl.learners.passes import difference_step, dual, to_float32
from fastmpl.learners.protocol import Forward, Gradient, LossPass, TangentPass, Update
from fastmpl.learners.recompute import recompute_blocks
from fastmpl.learners.running_statistics import RunningStatistics, mean_over_ranks, per_rank_names
from fastmpl.learners.state import Placement
from fastmpl.learners.zero import engine as deepspeed
from fastmpl.learners.zero.settings import settings
from fastmpl.learners.zero.shards import FlatShards, ParameterShards, Replicated, shards_of
from fastmpl.learners.zero.twin_passes import TwinPasses
from fastmpl.models.norms import use_batch_statistics
from fastmpl.models.stochastic import set_draw
from fastmpl.models.sync_norm import synchronise
from fastmpl.models.twin import twin


class ZeroLearner:
    """See `fastmpl.learners.protocol.RunLearner`."""

    def __init__(
        self,
        module: nn.Module,
        config: NetworkConfig,
        system: SystemConfig,
        *,
        steps: int,
        average: float = 0.0,
        tangent: Literal["jvp", "difference"] = "jvp",
        depth: int = 0,
        tangent_images: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.frozen = freeze_layers(module, config)
        self.module, self.config, self.system = set_training(module, self.frozen), config, system
        self.ranks, self.tangent_form, self.stage = ranks, tangent, system.zero_stage
        synchronise(module, ranks)
        self.statistics = RunningStatistics(module)
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.fixed = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
        self.moving = names_in_last_blocks(module, depth) & parameters.keys()  # what the tangent moves
        rates = layer_rates(module, config)
        for p in parameters.values():  # DeepSpeed sends and cuts rows; images may have their channels last all the same
            p.data = p.data.contiguous()
        decayed = decayed_names(parameters)
        self.device = next(iter(parameters.values())).device
        self.twin = TwinPasses(
            module,
            self.fixed,
            self.moving,
            device=self.device,
            precision=system.precision,
            tangent_images=tangent_images,
        )
        self.network = deepspeed.EngineNetwork(module, self.device, system.precision)
        elements = sum(p.numel() for p in parameters.values())
        derived = settings(system, ranks=ranks.size, elements=elements, on_gpu=self.device.type == "cuda")
        stepper = deepspeed.Stepper(list(parameters.values()), self._step)
        self.engine = deepspeed.build(self.network, stepper, derived, timeout=system.timeout)
        self.shards: Replicated | FlatShards | ParameterShards = shards_of(self.engine, parameters, ranks)
        self.optimiser = Optimiser(self.shards.tensors, config, steps, total=self._total, decayed=decayed, rates=rates)
        learning = {name: value for name, value in self._tensors().items() if name not in self.fixed}
        self.average = Average(learning, average) if average > 0 else None
        self._asked: tuple[Int[Tensor, ""], bool] | None = None
        self._update: Update | None = None

    def forward(
        self, images: Float[Tensor, "N *image"], draw: Int[Tensor, ""], *, keep: bool = True
    ) -> Float[Tensor, "N K"]:
        """As `RunLearner.forward`; shards keep nothing for later passes."""
        set_draw(self.module, draw)
        recomputed = recompute_blocks(self.module, draw) if self.system.recompute else nullcontext()
        with recomputed, self.statistics.record():
            logits: Tensor = self.engine(images)
        return logits

    @torch.no_grad()
    def observe(
        self, images: Float[Tensor, "N *image"], draw: Int[Tensor, ""], *, precise: bool = False
    ) -> Float[Tensor, "N K"]:
        set_draw(self.module, draw)
        with full_precision(precise), use_batch_statistics(self.module):
            return self._infer(to_float32(images) if precise else images, precise)  # a loader may give bf16

    @torch.no_grad()
    def infer(self, images: Float[Tensor, "N *image"]) -> Float[Tensor, "N K"]:
        """As `RunLearner.infer`; at stage 3 all ranks call it equally often."""
        self.module.eval()
        try:
            return self._infer(images)
        finally:
            set_training(self.module, self.frozen)

    def accumulate(self, loss: Float[Tensor, ""]) -> None:
        if isinstance(self.shards, ParameterShards):
            # DeepSpeed adds to what is there after another forward pass alone; a kept graph has had its own
            self.engine.optimizer.clear_backward_seen_flag()
        self.engine.backward(loss)

    @torch.no_grad()
    def apply(self, step: Int[Tensor, ""], *, keep: bool = False) -> Update:
        self._asked, self._update = (step, keep), None
        self.engine.step()
        assert self._update is not None, "DeepSpeed took no step"
        update: Update = self._update
        self._asked = self._update = None
        self.statistics.settle(update.applied)
        if self.average is not None:
            self.average.update(self._tensors(), step, update.applied, done=self.optimiser.averaged_names)
        return update

    def _step(self) -> None:
        """The optimiser's step, which the engine calls when it has reduced the gradients."""
        assert self._asked is not None, "the engine steps by itself"
        step, keep = self._asked
        found = self.optimiser.step(self.shards.gradients(), step, keep=keep, average=self.average)
        norm, applied, rate = (value.to(self.device) for value in found[:3])  # of offloaded shards, on the host
        self._update = Update(norm, applied, rate, found.old, found.gradients)

    def gradient(self, passes: Sequence[LossPass]) -> Gradient:
        if isinstance(self.shards, ParameterShards):
            return self._gradient_of_shards(self.shards, passes)
        return self.shards.mean(self.twin.gradient(dict(self.module.named_parameters()), passes))

    def _gradient_of_shards(self, shards: ParameterShards, passes: Sequence[LossPass]) -> Gradient:
        with use_batch_statistics(self.module):
            for images, loss, draw in passes:
                set_draw(self.module, draw)
                self.accumulate(loss(self.engine(images)) / len(passes))
        found = shards.reduce()
        self.engine.optimizer.zero_grad()  # nothing was learnt
        return {name: value for name, value in found.items() if name in self.moving}

    @torch.no_grad()
    def tangents(self, update: Update, passes: Sequence[TangentPass], gradient: Gradient) -> list[Float[Tensor, "N K"]]:
        assert update.old is not None, "the update was not kept"
        direction = self.optimiser.derivative(update, gradient)
        if self.tangent_form == "difference":
            return self._differences(update.old, direction, passes)
        if isinstance(self.shards, ParameterShards):
            return self.twin.tangents_by_layer(self._gather_duals(self.shards, update.old, direction), passes)
        old, moved = (self.shards.whole(pieces, self.device) for pieces in (update.old, direction))
        return self.twin.tangents(old, moved, passes)

    def _gather_duals(
        self, shards: ParameterShards, old: Gradient, direction: Gradient
    ) -> Callable[[list[str]], dict[str, Tensor]]:
        """What a layer's parameters are at theta, with their tangents along `direction`."""

        def gather(names: list[str]) -> dict[str, Tensor]:
            wanted = {name: [old, direction] if name in self.moving else [old] for name in names}
            found = shards.gather(wanted, self.device)
            return {name: dual(p, *moved) if moved else p for name, (p, *moved) in found.items()}

        return gather

    def _differences(self, old: Gradient, direction: Gradient, passes: Sequence[TangentPass]) -> list[Tensor]:
        """(S(theta + d v) - S(theta)) / d of each pass, of which stage 3 moves the shards themselves."""
        start = {name: old[name] for name in direction}
        update = {name: value - self.shards.tensors[name] for name, value in start.items()}
        # of `old` for its device: a rank may hold nothing of the direction
        squares = [sum_of_products(old | x, x) for x in (direction, start, update)]
        step = difference_step(*self._total(torch.stack(squares)).sqrt())
        moved = {name: p + step * direction[name] if name in direction else p for name, p in old.items()}
        if isinstance(self.shards, ParameterShards):
            with use_batch_statistics(self.module), self._at(moved):
                there = []
                for images, _, draw in passes:
                    set_draw(self.module, draw)
                    there.append(self._infer(images))
        else:
            there = self.twin.logits(self.shards.whole(moved, self.device), passes)
        step = step.to(self.device)
        return [(found - each.logits) / step for found, each in zip(there, passes, strict=True)]

    @contextmanager
    def _at(self, pieces: Mapping[str, Tensor]) -> Iterator[None]:
        """The network has these parameters within the block, and its own after it, whatever happens inside."""
        present = {name: value.clone() for name, value in self.shards.tensors.items()}
        try:
            self._become(pieces)
            yield
        finally:
            self._become(present)

    def _become(self, pieces: Mapping[str, Tensor]) -> None:
        for name, value in self.shards.tensors.items():
            value.copy_(pieces[name])
        self.shards.spread()

    @torch.no_grad()
    def loss_decrease(self, update: Update, gradient: Gradient) -> Float[Tensor, ""]:
        assert update.old is not None
        taken = {name: update.old[name] - self.shards.tensors[name] for name in gradient}
        return self._total(sum_of_products(update.old | taken, gradient)).to(self.device)

    @torch.no_grad()
    def mean(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        value = value.clone()
        self.ranks.all_reduce_mean_([value])
        return value

    def permute(self, rows: Float[Tensor, "U *K"], order: Callable[[Tensor], Tensor]) -> Float[Tensor, "U *K"]:
        return self.ranks.take_own_rows(order(self.ranks.all_gather(rows)))

    def placement(self) -> Placement:
        per_rank = per_rank_names(self.module, self.state())
        if self.stage == 0:
            return Placement(per_rank)
        parts = ("module",) if self.average is None else ("module", "average")
        names = {f"{part}/{name}" for part in parts for name in self.shards.shapes}
        names |= {f"optimiser/{name}/{key}" for name in self.shards.shapes for key in self.optimiser.row.state}
        return Placement(per_rank, frozenset(names))

    def use_mean_statistics(self) -> AbstractContextManager[None]:
        return mean_over_ranks(self, self.ranks)

    @property
    def has_average(self) -> bool:
        return self.average is not None

    def state(self) -> dict[str, Tensor]:
        """As `Stateful.state`; of parameters, this rank's pieces."""
        state = {f"module/{name}": value for name, value in self._tensors().items()}
        state |= {f"optimiser/{name}": value for name, value in self.optimiser.state().items()}
        if self.average is not None:
            state |= {f"average/{name}": value for name, value in self.average.tensors.items()}
        return state

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As `Stateful.load`; `tensors` may hold whole parameters for pieces, from any number of ranks."""
        sharded = self.placement().sharded
        for name, value in self.state().items():
            found = tensors[name]
            if name in sharded and found.numel() != value.numel():
                found = self.shards.cut(self._parameter(name), found)
            value.copy_(found.view_as(value))
        self.shards.spread()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.module.state_dict().items():
            if name not in self.shards.shapes:
                yield name, value
            elif isinstance(self.shards, ParameterShards):
                yield name, self.shards.gather({name: [self.shards.tensors]}, self.device)[name][0]
            else:  # which every rank holds
                yield name, value

    @contextmanager
    @torch.no_grad()
    def use_average(self) -> Iterator[nn.Module]:
        assert self.average is not None, "this learner keeps no average"
        same = self.shards.shapes.keys() | self.fixed.keys()
        buffers = {name: value for name, value in self._tensors().items() if name not in same}
        kept = {name: value.clone() for name, value in buffers.items()}
        try:
            for name, value in buffers.items():
                value.copy_(self.average.tensors[name])
            with self._at(self.average.tensors):
                yield self.module
        finally:
            for name, value in kept.items():
                buffers[name].copy_(value)

    @torch.no_grad()
    def successor(self, config: NetworkConfig, *, steps: int) -> "ZeroLearner":
        module = twin(self.twin.network).to_empty(device=self.device)
        with self.use_average() if self.average is not None else nullcontext():
            module.load_state_dict(dict(self.weights()))
        return ZeroLearner(module, config, self.system, steps=steps, ranks=self.ranks)

    def replace_call(self, wrap: Callable[[Forward], Forward]) -> None:
        self.network.call = wrap(self.network.call)

    def close(self) -> None:
        close = getattr(self.network.call, "close", None)  # of graphs, which the group of ranks would wait for
        if close is not None:
            close()
        deepspeed.destroy(self.engine)

    def _infer(self, images: Tensor, precise: bool = False) -> Tensor:
        """A pass without a graph."""
        self.network.precise = precise
        try:
            logits: Tensor = self.network(images.float() if precise else images)  # a loader may give bf16
        finally:
            self.network.precise = False
        return logits

    def _tensors(self) -> dict[str, Tensor]:
        """The network's state dict with this rank's pieces for its parameters."""
        buffers = {name: value for name, value in self.module.state_dict().items() if name not in self.shards.shapes}
        return self.shards.tensors | buffers

    def _total(self, value: Tensor) -> Tensor:
        """A sum over ranks of what each has computed of its pieces."""
        if self.stage == 0 or self.ranks.size == 1:
            return value
        total = value.to(self.device, copy=True)
        self.ranks.all_reduce_sum_([total])
        return total.to(value.device)

    def _parameter(self, name: str) -> str:
        """The parameter that a sharded name in `state()` is a piece of."""
        part, _, path = name.partition("/")
        return path.rpartition("/")[0] if part == "optimiser" else path
