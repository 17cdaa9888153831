"""A stream of training images: what every implementation gives, in memory or decoded at every step."""

from typing import NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor


class Replacement(NamedTuple):
    """Image `index` could not be used: image `by` took its place in a rank's batch, for `reason`."""

    place: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    by: int
    reason: str


class Views(NamedTuple):
    """The weak and the strong view of the same n images; `strong` is None in a stream of labelled images.

    `replaced`: the images that could not be read. `index` names the images that took their places.
    """

    weak: Float[Tensor, "n *image"]
    strong: Float[Tensor, "n *image"] | None
    index: Int[Tensor, "n"]  # type: ignore[assignment]  # positions in the training arrays; hides tuple.index
    replaced: tuple[Replacement, ...] = ()


class ViewStream(Protocol):
    """An endless series of views, opened at some step. On a GPU `fastmpl.data.device_stream` says how long they live."""

    def next(self) -> Views:
        """The next step's views."""
        ...
