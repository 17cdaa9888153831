"""Which images form the batch of a step: a pure function of seed, stream, step and rank.

The order of a stream is a chain of seeded permutations, one an epoch, without gaps: a set smaller than a batch appears
more than once in it, and no image is left out at the end of an epoch. Step s of a global batch of B images takes positions
[sB, (s+1)B) of that order; rank r of w takes places [rB/w, (r+1)B/w) of these. The images of all ranks, one rank after
another, are therefore those of one process, and a run that resumes needs its step and nothing else.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmpl.data import draws
from fastmpl.data.errors import DataError


class Samples(NamedTuple):
    """The images of one rank's batch, and the epoch of each: how many times it came before. Both [n]."""

    index: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    epoch: NDArray[np.int64]


class Sampler:
    """The order of one stream over the images `members` [N] of the data set, for one rank.

    Raises DataError where there are no members, or where `batch` images cannot be shared by `world` ranks.
    """

    def __init__(
        self, members: NDArray[np.int64], batch: int, stream: draws.StreamName, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if not members.size:
            raise DataError(f"There are no {stream.name.lower()} images to train on: check the counts in [data].")
        if batch < world or batch % world:
            raise DataError(
                f"A batch of {batch} {stream.name.lower()} images cannot be shared by {world} ranks: "
                f"use a multiple of {world}."
            )
        self.batch = batch // world
        self.members = members
        self._global_batch = batch
        self._offset = rank * self.batch
        self._order_key = draws.key(seed, draws.Purpose.ORDER, stream)
        self._views_key = draws.key(seed, draws.Purpose.VIEWS, stream)
        self._epochs: dict[int, NDArray[np.int64]] = {}  # a cache of the latest permutations

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            kept = {e: p for e, p in self._epochs.items() if abs(e - epoch) <= 2}
            kept[epoch] = self.members[draws.permutation(draws.extend(self._order_key, epoch), len(self.members))]
            self._epochs = kept
        return self._epochs[epoch]

    def samples(self, step: int) -> Samples:
        """The images of this rank at `step` (0 for the first)."""
        position = step * self._global_batch + self._offset + np.arange(self.batch)
        epoch, place = np.divmod(position, len(self.members))
        index = np.empty(self.batch, dtype=np.int64)
        for e in range(int(epoch[0]), int(epoch[-1]) + 1):
            here = epoch == e
            index[here] = self._epoch(e)[place[here]]
        return Samples(index, epoch)

    def uniform(self, rows: Samples, columns: int) -> NDArray[np.float32]:
        """Uniform numbers [n, columns] of the images `rows` in their epochs; their places in a batch do not matter."""
        return draws.uniform(draws.extend(self._views_key, rows.epoch), rows.index, columns)

    def normal(self, rows: Samples, columns: int) -> NDArray[np.float32]:
        """As `uniform`, but standard normal numbers."""
        return draws.normal(draws.extend(self._views_key, rows.epoch), rows.index, columns)
