"""Block recomputation: activations inside a block are computed again in the backward pass instead of kept.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016. torch's checkpoint does the work. Here
are the blocks, and what makes the second computation equal the first: batch statistics are recorded once, and dropout
repeats its draws. Only the learner's one forward pass with a graph uses it: passes that are compared keep no activations.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmpl.learners.blocks import block_names
from fastmpl.models.norms import PendingSum, repeat_statistics
from fastmpl.models.stochastic import set_draw


@contextmanager
def recompute_blocks(module: nn.Module, draw: Int[Tensor, ""]) -> Iterator[None]:
    """Blocks called within are computed again in their backward pass, by the dropout of `draw`.

    The forward of a block is replaced for the pass alone: before and after it the network is plain.
    """
    draw = draw.clone()  # the caller's may have moved on when the backward pass comes
    members = dict(module.named_modules())
    blocks = [members[name] for name in block_names(module)]
    replaced = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.__dict__["forward"] = partial(_forward, block, block.forward, draw)
    try:
        yield
    finally:
        for block, forward in zip(blocks, replaced, strict=True):
            del block.__dict__["forward"]
            if forward is not None:
                block.__dict__["forward"] = forward


def _forward(block: nn.Module, plain: Any, draw: Int[Tensor, ""], *inputs: Any, **options: Any) -> Any:
    """The forward of a block that keeps its inputs alone. A pending sum is taken first: it is one tensor to keep, and its
    terms are gone when the block runs again."""
    inputs = tuple(value.take() if isinstance(value, PendingSum) else value for value in inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _repeat(block, draw)

    return checkpoint(plain, *inputs, use_reentrant=False, context_fn=contexts, preserve_rng_state=False, **options)


@contextmanager
def _repeat(block: nn.Module, draw: Int[Tensor, ""]) -> Iterator[None]:
    """The second computation: by the dropout of its own pass, whatever passes came between."""
    set_draw(block, draw)
    with repeat_statistics(block):
        yield
