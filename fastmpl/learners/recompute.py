"""Block recomputation: activations inside a block are computed again in the backward pass instead of kept.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016. torch's checkpoint does the work; here
are the blocks, and what makes the second computation the same network as the first: its batch statistics are recorded
once, and its dropout draws again what it drew. Only the learner's one forward with a graph uses it: the passes that are
compared keep no activations anyway.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any

from jaxtyping import Int
from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from fastmpl.learners.blocks import blocks
from fastmpl.models.norms import repeated_statistics
from fastmpl.models.stochastic import set_draw


class _Pass:
    """The dropout key of the pass that recomputes now, if one does; shared by a network's blocks."""

    draw: Int[Tensor, ""] | None = None


class Recomputation:
    """Prepares the blocks of `module`: they recompute within `on()`, and are plain outside it."""

    def __init__(self, module: nn.Module) -> None:
        self._pass = _Pass()
        held = dict(module.named_modules())
        for name in blocks(module):
            block = held[name]
            block.recomputing = self._pass
            block.forward = MethodType(_forward, block)  # bound, so that a copied network gets blocks of its own

    @contextmanager
    def on(self, draw: Int[Tensor, ""]) -> Iterator[None]:
        """Blocks called within are computed again in their backward, by the dropout of `draw`."""
        self._pass.draw = draw.clone()
        try:
            yield
        finally:
            self._pass.draw = None


def _forward(block: nn.Module, *inputs: Any, **options: Any) -> Any:
    """The forward of a prepared block."""
    plain = MethodType(type(block).forward, block)
    current = block.recomputing
    assert isinstance(current, _Pass)
    draw = current.draw
    if draw is None or not is_grad_enabled():
        return plain(*inputs, **options)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _again(block, draw)

    return checkpoint(plain, *inputs, use_reentrant=False, context_fn=contexts, preserve_rng_state=False, **options)


@contextmanager
def _again(block: nn.Module, draw: Int[Tensor, ""]) -> Iterator[None]:
    """The second computation: the key is the network's, and the pass that set it last is over by now."""
    set_draw(block, draw)
    with repeated_statistics(block):
        yield
