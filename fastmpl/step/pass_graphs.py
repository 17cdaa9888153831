"""The passes of one network as CUDA graphs of their own, for a step that cannot be one graph.

Between the passes of a sharded step DeepSpeed reduces gradients, gathers parameters and asks the host; inside a pass of
stages 0 to 2 there is nothing but arithmetic on parameters that stay where they are. Those stretches are captured here,
each for itself: a pass without a graph (labels, before and after), and a pass with one, forward and backward apart, up to
the parameters' gradients. What receives them (autograd's accumulation, DeepSpeed's hooks) runs as it would, after the
replay. The tangent, the optimiser and all communication stay eager.

What it costs, beside a whole-step graph: a launch and two copies a pass, a second copy of the gradients, and memory: a
captured pass owns its activations for ever. Passes without a graph share theirs, since none is ever half done. Passes
with a graph own a `Room`, from their forward to their backward; the two networks of a deferred schedule are never half
done at the same time, and may share one. Others need the memory of both.

Limits. In a room one pass at a time: a second forward before the first one's backward is refused, as it would overwrite its
activations. Not for stage 3, which gathers inside the pass, nor for recomputation, which runs passes inside passes. It was
checked on a CPU, where tests imitate graphs operator by operator; no GPU has run it. `system.graph = "on"` asks for it.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from fastmpl.learners.protocol import Forward, RunLearner
from fastmpl.models.stand_ins import call_with

WARMUP: Final = 3  # eager passes before a capture: libraries choose their algorithms

Key = tuple[object, ...]


class Room:
    """Memory of passes of which one at a time is between its forward and its backward."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.is_open = False


class PassGraphs:
    """Calls like a network: passes in training mode are replayed, everything else is called as it is.

    Dropout's draws, running statistics and parameters are tensors that stay; what kind of pass it is (with a graph or
    not, statistics recorded or not, autocast, shapes) decides which graph is replayed.
    """

    def __init__(self, plain: Forward, module: nn.Module, device: torch.device, room: Room | None = None) -> None:
        """plain: an eager pass of `module`. room: of its passes with a graph; one of its own if not given."""
        self.plain, self.module, self.device, self.room = plain, module, device, room or Room()
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        self._counts: dict[Key, int] = {}
        self._observed: dict[Key, _Observed] = {}
        self._differentiated: dict[Key, _Differentiated] = {}

    def __call__(self, images: Tensor) -> Tensor:
        if not self.module.training:  # an evaluation's last batch has another shape
            return self.plain(images)
        key = self._key(images)
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._counts[key] <= WARMUP:
            return self._beside(images)
        if not torch.is_grad_enabled():
            if key not in self._observed:
                self._observed[key] = _Observed(self, images)
            return self._observed[key](images)
        if key not in self._differentiated:
            self._differentiated[key] = _Differentiated(self, images)
        logits: Tensor = _Replay.apply(self._differentiated[key], images, *self.parameters.values())
        return logits

    def close(self) -> None:
        """Destroys the graphs, which may hold collectives of synchronised norms; later passes are eager."""
        for observed in self._observed.values():
            observed.reset()
        for differentiated in self._differentiated.values():
            differentiated.reset()
        self._observed, self._differentiated, self._counts = {}, {}, {}

    def _beside(self, images: Tensor) -> Tensor:
        """An eager pass on the stream of the captures."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            logits = self.plain(images)
        current.wait_stream(self.stream)
        return logits

    def _key(self, images: Tensor) -> Key:
        """What a captured pass would freeze."""
        statistics = tuple((m.track_running_stats, m.num_batches_tracked is None) for m in self.norms)
        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        layout = images.is_contiguous(memory_format=torch.channels_last) if images.ndim == 4 else True
        return (torch.is_grad_enabled(), statistics, autocast, images.shape, images.dtype, layout)

    def capture(self, run: Callable[[], Any], pool: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            return graph, run()


def replay_passes(learners: Iterable[RunLearner], device: torch.device, *, never_open_together: bool) -> None:
    """From now on the passes of these networks are graphs. never_open_together: whether they may share a room."""
    room = Room() if never_open_together else None
    for learner in learners:
        learner.replace_call(partial(PassGraphs, module=learner.module, device=device, room=room))


class _Observed:
    """A captured pass without a graph."""

    def __init__(self, graphs: PassGraphs, images: Tensor) -> None:
        self.images = images.clone(memory_format=torch.preserve_format)
        self.graph, self.logits = graphs.capture(lambda: graphs.plain(self.images), graphs.pool)

    def __call__(self, images: Tensor) -> Tensor:
        self.images.copy_(images)
        self.graph.replay()
        logits: Tensor = self.logits.clone()  # its memory is the next pass's
        return logits

    def reset(self) -> None:
        self.graph.reset()


class _Differentiated:
    """A captured pass with a graph, and its backward."""

    def __init__(self, graphs: PassGraphs, images: Tensor) -> None:
        self.images = images.clone(memory_format=torch.preserve_format)
        self.room = graphs.room
        # Aliases of the parameters, made here: the parameters' own accumulation nodes belong to the stream on which the
        # optimiser, or DeepSpeed's hooks, first asked for them, and a backward pass would make that stream wait.
        aliases = {name: p.detach().requires_grad_() for name, p in graphs.parameters.items()}
        self.forward_graph, logits = graphs.capture(
            lambda: call_with(graphs.module, aliases, self.images), self.room.pool
        )
        self.cotangent = torch.zeros_like(logits)
        self.backward_graph, self.gradients = graphs.capture(
            lambda: torch.autograd.grad(logits, list(aliases.values()), self.cotangent, allow_unused=True),
            self.room.pool,
        )
        self.logits: Tensor = logits.detach()  # autograd's graph ends here, and the room may lend what it saved

    def forward(self, images: Tensor) -> Tensor:
        assert not self.room.is_open, "a second forward pass before the first one's backward"
        self.room.is_open = True
        self.images.copy_(images)
        self.forward_graph.replay()
        return self.logits.clone()

    def backward(self, cotangent: Tensor) -> list[Tensor | None]:
        self.room.is_open = False
        self.cotangent.copy_(cotangent)
        self.backward_graph.replay()
        # copies: autograd may keep what it is given as the parameter's gradient, and the next replay writes here
        return [None if gradient is None else gradient.clone() for gradient in self.gradients]

    def reset(self) -> None:
        self.forward_graph.reset()
        self.backward_graph.reset()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: _Differentiated, images: Float[Tensor, "N *image"], *parameters: Tensor) -> Tensor:
        ctx.captured = captured
        return captured.forward(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.captured.backward(cotangent))
