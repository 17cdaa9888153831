"""Running statistics of batch norms: recorded by the passes of a step, kept only if the step was taken.

A pass whose activations or gradients overflow moves running statistics before anyone knows that its update will be
skipped. So what they were is remembered at the first pass of a step, and put back on the device where the update was
not applied; nothing is read on the host. The batch counters of all layers are moved then too, in one operation.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.state import Stateful


class RunningStatistics:
    """Those of the batch norms in `module`. With micro-batches each of a step's passes moves them once."""

    def __init__(self, module: nn.Module) -> None:
        # a frozen norm is in evaluation mode and records nothing
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
        self._values = [value for m in norms for value in (m.running_mean, m.running_var) if value is not None]
        # a norm without momentum averages over all batches, and reads its counter within the pass
        self._counting = [m for m in norms if m.momentum is not None and m.num_batches_tracked is not None]
        self._counters = [m.num_batches_tracked for m in self._counting if m.num_batches_tracked is not None]
        self._before: Tensor | None = None
        self._passes = 0

    @contextmanager
    def record(self) -> Iterator[None]:
        """A pass within records its batch; its norms leave the counting to `settle`."""
        if self._values and self._before is None:
            self._before = _flat(self._values)
        self._passes += 1
        for norm in self._counting:
            norm._buffers["num_batches_tracked"] = None
        try:
            yield
        finally:
            for norm, counter in zip(self._counting, self._counters, strict=True):
                norm._buffers["num_batches_tracked"] = counter

    def abandon(self) -> None:
        """Forgets the passes of a step that did not end."""
        self._before, self._passes = None, 0

    @torch.no_grad()
    def settle(self, applied: Float[Tensor, ""]) -> None:
        """Ends a step: where `applied` is 0, all is as it was before the step's passes."""
        before, passes = self._before, self._passes
        self._before, self._passes = None, 0
        if before is None:
            return
        # selected, not blended: 0 times a statistic that is not finite is not 0
        taken = applied > 0
        kept = torch.where(taken, _flat(self._values), before)
        parts = torch.split(kept, [value.numel() for value in self._values])
        torch._foreach_copy_(
            self._values, [part.view_as(value) for part, value in zip(parts, self._values, strict=True)]
        )
        if self._counters:
            # one per counter: a single 0-D tensor would be read by the host
            torch._foreach_add_(self._counters, [taken * passes] * len(self._counters))


@torch.no_grad()
def _flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])


def per_rank_names(module: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Those of a learner's `part/name` that each rank takes of its own images: the floating-point buffers of `module`."""
    buffers = {name for name, value in module.named_buffers() if value.is_floating_point()}
    return frozenset(name for name in names if name.partition("/")[2] in buffers)


@contextmanager
@torch.no_grad()
def mean_over_ranks(learner: Stateful, ranks: Ranks) -> Iterator[None]:
    """What the learner's ranks hold of their own images is its mean over ranks within the block, and restored after it."""
    names = learner.placement().per_rank if ranks.size > 1 else frozenset()
    mine = {name: value for name, value in learner.state().items() if name in names}
    kept = {name: value.clone() for name, value in mine.items()}
    ranks.all_reduce_mean_(list(mine.values()))
    try:
        yield
    finally:
        for name, value in kept.items():
            mine[name].copy_(value)
