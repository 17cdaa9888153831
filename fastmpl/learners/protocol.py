"""What a step (`Learner`) and a run (`RunLearner`) may ask of a network and the optimiser that trains it.

One process, data-parallel ranks and DeepSpeed's shards keep the same protocol, so that a step and a run are written
once. Images are [N, *image], logits [N, K] in float32 (float64 for a float64 network). A `draw` is the 0-D int64 key of
a pass's dropout: passes that are compared get the same key and so the same draw.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, Self

from jaxtyping import Float, Int
from torch import Tensor, nn

from fastmpl.config import NetworkConfig
from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.state import Stateful

Gradient = dict[str, Tensor]  # by parameter name
Loss = Callable[[Tensor], Tensor]  # logits [N, K] -> 0-D
Forward = Callable[[Tensor], Tensor]  # images [N, *image] -> logits [N, K]


class LossPass(NamedTuple):
    """A micro-batch of a loss whose gradient is asked for."""

    images: Float[Tensor, "N *image"]
    loss: Loss
    draw: Int[Tensor, ""]


class TangentPass(NamedTuple):
    """A micro-batch whose logits' tangent is asked for."""

    images: Float[Tensor, "N *image"]
    logits: Float[Tensor, "N K"]  # before the update, which the difference form uses
    draw: Int[Tensor, ""]


class Update(NamedTuple):
    """One optimiser step, and what crediting it needs."""

    norm: Float[Tensor, ""]  # of the gradient, before clipping
    applied: Float[Tensor, ""]  # 1; 0 where the gradient was not finite and the step was skipped
    rate: Float[Tensor, ""]  # the learning rate it took
    old: Gradient | None  # the parameters before it
    gradients: Gradient | None  # as the optimiser saw them, clipped


class Learner(Protocol):
    """A network that learns by one optimiser step per training step."""

    def forward(
        self, images: Float[Tensor, "N *image"], draw: Int[Tensor, ""], *, keep: bool = True
    ) -> Float[Tensor, "N K"]:
        """Logits with a graph; updates running statistics, so once per network and step. `keep` what later passes of the
        step on the same images can use again; without it nothing outlives the graph.
        """
        ...

    def observe(
        self, images: Float[Tensor, "N *image"], draw: Int[Tensor, ""], *, precise: bool = False
    ) -> Float[Tensor, "N K"]:
        """Logits without a graph, by batch statistics, running ones untouched; `precise` leaves autocast out."""
        ...

    def accumulate(self, loss: Float[Tensor, ""]) -> None:
        """Adds the gradient of this rank's loss."""
        ...

    def apply(self, step: Int[Tensor, ""], *, keep: bool = False) -> Update:
        """One optimiser step on the mean over ranks of what was accumulated; `keep` what crediting it needs."""
        ...

    def gradient(self, passes: Sequence[LossPass]) -> Gradient:
        """The gradient here of the losses' mean over passes and ranks; accumulated gradients and running statistics
        untouched. Ranks exchange it once, however many passes it is made of (at ZeRO's stage 3, once a pass).
        """
        ...

    def tangents(self, update: Update, passes: Sequence[TangentPass], gradient: Gradient) -> list[Float[Tensor, "N K"]]:
        """d logits / de of each pass's images at theta + e D v, e = 0: theta are the parameters before `update`, v is
        `gradient`, and D = (dF/dg)^T of the update theta' = theta - F(g).
        """
        ...

    def loss_decrease(self, update: Update, gradient: Gradient) -> Float[Tensor, ""]:
        """<g, theta - theta'>: the decrease, to first order, of the loss whose gradient at theta' is g."""
        ...

    def mean(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """A scalar's mean over ranks."""
        ...

    def permute(self, rows: Float[Tensor, "U *K"], order: Callable[[Tensor], Tensor]) -> Float[Tensor, "U *K"]:
        """This rank's part of `order` applied to the rows of all ranks, one rank's after another's."""
        ...


class RunLearner(Learner, Stateful, Protocol):
    """What a run asks of a learner between steps: to evaluate, save, hand on and end it. All ranks call it alike."""

    module: nn.Module
    ranks: Ranks

    @property
    def has_average(self) -> bool:
        """Whether it keeps a moving average of its weights."""
        ...

    def infer(self, images: Float[Tensor, "N *image"]) -> Float[Tensor, "N K"]:
        """Logits of a finished network: running statistics, no dropout, no graph."""
        ...

    def use_average(self) -> AbstractContextManager[nn.Module]:
        """The network has its averaged weights within the block, and its own after it. Needs `has_average`."""
        ...

    def use_mean_statistics(self) -> AbstractContextManager[None]:
        """Running statistics, also the average's, are their means over ranks within the block, and restored after it."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The network's state dict, one whole tensor at a time; every rank goes through all of them."""
        ...

    def successor(self, config: NetworkConfig, *, steps: int) -> Self:
        """A learner of its own that starts from this one's average, where it keeps one, else from its weights."""
        ...

    def replace_call(self, wrap: Callable[[Forward], Forward]) -> None:
        """From now on the training passes of the network call `wrap` of what they called before. `close` of a learner calls
        `close` of what `wrap` gave, where it has one.
        """
        ...

    def close(self) -> None:
        """Frees what lies outside of Python's memory; the last use of a learner."""
        ...
