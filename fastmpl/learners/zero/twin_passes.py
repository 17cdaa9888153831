"""Passes of a sharded network at parameters that are not its own, without its engine.

Feedback needs the gradient of V and the tangent at the old parameters. The engine would reduce, gather and count in its
hooks, as if the network learned. These passes go through a twin of the network, which has no hooks and no storage.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastmpl.learners.arithmetic import Precision, autocast
from fastmpl.learners.forward_rules import use_forward_rules
from fastmpl.learners.passes import dual, mean_gradient, tangent_of, to_float32
from fastmpl.learners.protocol import Forward, Gradient, Loss, LossPass, TangentPass
from fastmpl.learners.tangent_parts import call_in_parts
from fastmpl.learners.zero.layerwise import Gather, layer_by_layer
from fastmpl.models.attention import use_math_attention
from fastmpl.models.norms import use_batch_statistics
from fastmpl.models.stand_ins import call_with
from fastmpl.models.stochastic import set_draw
from fastmpl.models.twin import twin


class TwinPasses:
    """Passes through the twin of `module`, made before an engine hooks `module`. They share its buffers, so its draws."""

    def __init__(
        self,
        module: nn.Module,
        fixed: Mapping[str, Tensor],
        moving: Collection[str],
        *,
        device: torch.device,
        precision: Precision,
        tangent_images: int,
    ) -> None:
        """fixed: the frozen parameters. moving: names of those that gradient and tangent are about."""
        self.network = twin(module)
        for ours, theirs in zip(self.network.modules(), module.modules(), strict=True):
            ours._buffers.update(theirs._buffers)
        self.fixed, self.moving, self.tangent_images = dict(fixed), moving, tangent_images
        self.device, self.precision = device, precision

    def gradient(self, parameters: Mapping[str, Tensor], passes: Sequence[LossPass]) -> Gradient:
        """The gradient of the losses' mean over the passes by the parameters that move, on this rank's images."""
        held = {name: p if name in self.moving else p.detach() for name, p in parameters.items()}
        moving = {name: p for name, p in held.items() if name in self.moving}

        def one(images: Tensor, loss: Loss, draw: Tensor) -> tuple[Tensor, ...]:
            set_draw(self.network, draw)
            with self._as_in_training():
                value = loss(to_float32(call_with(self.network, held, images)))
            return torch.autograd.grad(value, list(moving.values()), materialize_grads=True)  # 0 for what is not used

        return dict(zip(moving, mean_gradient(one(*each) for each in passes), strict=True))

    def logits(self, parameters: Mapping[str, Tensor], passes: Sequence[TangentPass]) -> list[Tensor]:
        """The logits of each pass at `parameters`, which are whole."""
        every = self.fixed | dict(parameters)
        with self._as_in_training():
            return self._each(lambda images: to_float32(call_with(self.network, every, images)), passes)

    def tangents(self, old: Gradient, direction: Gradient, passes: Sequence[TangentPass]) -> list[Tensor]:
        """The tangent of each pass's logits at the whole parameters `old`, which move along `direction`."""
        with self._in_forward_mode():
            moved = {name: dual(p, direction[name] if name in self.moving else None) for name, p in old.items()}
            every = self.fixed | moved
            return self._push(lambda images: call_with(self.network, every, images), passes)

    def tangents_by_layer(self, gather: Gather, passes: Sequence[TangentPass]) -> list[Tensor]:
        """The same where no rank holds the whole network: each pass takes a layer's duals from `gather`."""
        with self._in_forward_mode(), layer_by_layer(self.network, gather):
            return self._push(self.network, passes)

    def _push(self, call: Forward, passes: Sequence[TangentPass]) -> list[Tensor]:
        """The tangent of each pass's logits; `call` is the network with duals for parameters."""

        def push(images: Tensor) -> Tensor:
            return to_float32(tangent_of(call(images)))

        return self._each(lambda images: call_in_parts(self.network, images, self.tangent_images, push), passes)

    def _each(self, call: Forward, passes: Sequence[TangentPass]) -> list[Tensor]:
        """What `call` makes of each pass's images, by the pass's draws."""
        found = []
        for images, _, draw in passes:
            set_draw(self.network, draw)
            found.append(call(images))
        return found

    @contextmanager
    def _as_in_training(self) -> Iterator[None]:
        with autocast(self.device, self.precision), use_batch_statistics(self.network):
            yield

    @contextmanager
    def _in_forward_mode(self) -> Iterator[None]:
        attention, rules = use_math_attention(self.network), use_forward_rules(self.network)
        with self._as_in_training(), attention, rules, forward_ad.dual_level():
            yield
