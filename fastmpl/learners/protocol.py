"""What methods and schedules may ask of a network that learns.

The same protocol is kept by one process, by data-parallel ranks and by sharded engines, so that a schedule is written
once. Images are [N, *image], logits [N, K] in float32 (float64 for a float64 network). A `draw` is the 0-D int64 key of
a pass's dropout: passes that are compared get the same key and so the same draw.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor

Gradient = dict[str, Tensor]  # by parameter name
Loss = Callable[[Tensor], Tensor]  # logits [N, K] -> 0-D


class Update(NamedTuple):
    """One optimiser step, and what crediting it needs."""

    norm: Float[Tensor, ""]  # of the gradient, before clipping
    applied: Float[Tensor, ""]  # 1; 0 where the gradient was not finite and the step was skipped
    rate: Float[Tensor, ""]  # the learning rate it took
    old: Gradient | None  # the parameters before it
    gradients: Gradient | None  # as the optimiser saw them, clipped


class Learner(Protocol):
    """A network that learns by one optimiser step per training step."""

    def forward(self, images: Float[Tensor, "N *image"], draw: Int[Tensor, ""]) -> Float[Tensor, "N K"]:
        """Logits with a graph; updates running statistics, so once per network and step."""
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

    def gradient(self, images: Float[Tensor, "N *image"], loss: Loss, draw: Int[Tensor, ""]) -> Gradient:
        """The mean over ranks of the loss's gradient here; accumulated gradients and running statistics untouched."""
        ...

    def tangent(
        self,
        update: Update,
        images: Float[Tensor, "N *image"],
        logits: Float[Tensor, "N K"],
        gradient: Gradient,
        draw: Int[Tensor, ""],
    ) -> Float[Tensor, "N K"]:
        """d logits / de of these images at theta + e D g, e = 0, with theta the parameters before `update` and
        D = -d theta' / d(its gradient). `logits` are those at theta, which one of the two forms starts from.
        """
        ...

    def progress(self, update: Update, gradient: Gradient) -> Float[Tensor, ""]:
        """<g, theta - theta'>: to first order what the update took off the loss whose gradient this is."""
        ...

    def cosine(self, update: Update, gradient: Gradient) -> Float[Tensor, ""]:
        """The cosine between the update's gradient and this one."""
        ...

    def mean(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """A scalar's mean over ranks."""
        ...

    def permuted(self, rows: Float[Tensor, "U *K"], order: Callable[[Tensor], Tensor]) -> Float[Tensor, "U *K"]:
        """This rank's part of `order` applied to the rows of all ranks, one rank's after another's."""
        ...
