"""What every stream of training images gives, however its views are made."""

from typing import NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor


class Replacement(NamedTuple):
    """Image `index` could not be used, and `by` took its place in a rank's batch."""

    place: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    by: int
    reason: str


class Views(NamedTuple):
    """Weak and strong view of the same n images; `strong` is None where the stream has only labels to learn from.

    `replaced` are the images that could not be read; others are in their places, in `index` too.
    """

    weak: Float[Tensor, "n *image"]
    strong: Float[Tensor, "n *image"] | None
    index: Int[Tensor, "n"]  # type: ignore[assignment]  # positions in the training arrays; hides tuple.index
    replaced: tuple[Replacement, ...] = ()


class ViewStream(Protocol):
    """An endless stream that was opened at some step; its tensors are the caller's to keep."""

    def next(self) -> Views:
        """The next step's views."""
        ...
