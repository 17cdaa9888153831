"""What training continues from: named tensors of named parts, flattened once into a checkpoint's `part/name`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


class Placement(NamedTuple):
    """Which tensors of a state are not the same on all ranks."""

    per_rank: frozenset[str] = frozenset()  # may differ between ranks, as statistics of a rank's own images do
    sharded: frozenset[str] = frozenset()  # pieces of one tensor; a rank may hold nothing of some that are named


class Stateful(Protocol):
    """Something that training continues from."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor by name, as this rank holds it: the memory itself, no copies."""
        ...

    def placement(self) -> Placement:
        """Which names of `state()` differ between ranks."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from a `state()`, in place: addresses stay. Raises KeyError for a name that is missing."""
        ...


class Parts:
    """Several parts as one: the names of each are preceded by its own and a slash."""

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = dict(parts)

    def state(self) -> dict[str, Tensor]:
        return {f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.state().items()}

    def placement(self) -> Placement:
        return Placement(
            self._prefix(lambda placement: placement.per_rank), self._prefix(lambda placement: placement.sharded)
        )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, part in self.parts.items():
            start = f"{name}/"
            part.load({key.removeprefix(start): v for key, v in tensors.items() if key.startswith(start)})

    def _prefix(self, choose: Callable[[Placement], frozenset[str]]) -> frozenset[str]:
        return frozenset(f"{name}/{key}" for name, part in self.parts.items() for key in choose(part.placement()))
