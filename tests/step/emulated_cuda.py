"""CUDA graphs and streams imitated on the CPU, as far as `GraphedStep` uses them.

What a capture does: it notes every operator on the addresses it is given, and computes nothing. A replay runs the noted
operators again on those addresses; Python is not asked. So a number that Python held at the capture stays what it was,
and a tensor that was replaced is not seen, as on a GPU. Streams only note who waits for whom.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def tensors(*trees: object) -> list[Tensor]:
    return [leaf for leaf in tree_iter(trees) if isinstance(leaf, Tensor)]


class Graph(TorchDispatchMode):
    """Notes operators within `with`, undoes what they did at its end, and runs them again in `replay`."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        self._born: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in tensors(args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._born and storage._cdata not in self._before:
                self._before[storage._cdata] = storage, storage.clone()
        out = func(*args, **kwargs)
        self._born |= {t.untyped_storage()._cdata for t in tensors(out)} - self._before.keys()
        self.calls.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)

    def reset(self) -> None:
        self.calls.clear()

    def replay(self) -> None:
        self.replays += 1
        self.log.append("replay")
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                for static, fresh in zip(tensors(out), tensors(again), strict=True):
                    aliases = static.untyped_storage()._cdata == fresh.untyped_storage()._cdata or func.is_view
                    if not aliases and not static._is_zerotensor():
                        static.detach().copy_(fresh)


class Stream:
    """A stream with a name, that notes for whom it waited."""

    def __init__(self, cuda: "Cuda", name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: "Stream") -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class Event:
    """The work of these streams is done when it is asked for, and so is every event."""

    def __init__(self, **options: object) -> None: ...
    def record(self) -> None: ...
    def synchronize(self) -> None: ...


class Cuda:
    """Stands in for what `GraphedStep` takes from torch.cuda; `log` is what happened, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.graphs: list[Graph] = []
        self._names = iter(("capture", "loading"))
        self._current = [Stream(self, "current")]
        for name in ("Stream", "CUDAGraph", "stream", "graph", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)

    def Stream(self, device: object) -> Stream:
        return Stream(self, next(self._names))

    def CUDAGraph(self) -> Graph:
        self.graphs.append(Graph(self.log))
        return self.graphs[-1]

    def current_stream(self) -> Stream:
        return self._current[-1]

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self._current.append(stream)
        self.log.append(f"on {stream.name}")
        try:
            yield
        finally:
            self._current.pop()

    @contextmanager
    def graph(self, graph: Graph, *, stream: Stream, capture_error_mode: str, pool: object = None) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        with self.stream(stream):
            try:
                with graph:
                    yield
            finally:
                graph.undo()
