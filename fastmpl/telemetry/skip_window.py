"""How many updates were skipped in the last hundred steps, counted on the device, across lines of metrics and resumes."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

STEPS: Final = 100
AT_MOST: Final = 10  # skipped updates in `STEPS` steps; a run with more has diverged


class SkipWindow:
    """The skipped updates of each of the last `STEPS` steps, and the largest sum of them since the last read.

    `add` never waits for the device and always writes the same memory, so it can be part of a captured step. `recent` is
    its state. An update is skipped on all ranks or on none, so that every rank holds the same numbers.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.recent: Tensor = torch.zeros(STEPS, device=device)
        self._worst: Float[Tensor, ""] = torch.zeros((), device=device)

    def add(self, skipped: Float[Tensor, ""]) -> None:
        """Adds the number of updates that a step skipped."""
        self.recent.copy_(torch.cat([self.recent[1:], skipped.detach().reshape(1).to(self.recent.dtype)]))
        self._worst.copy_(torch.maximum(self._worst, self.recent.sum()))

    def read_worst(self) -> int:
        """The most skipped updates in `STEPS` consecutive steps since the last call; it waits for the device."""
        worst = int(self._worst)
        self._worst.zero_()
        return worst

    def load(self, recent: Tensor) -> None:
        """Continues from a saved `recent`."""
        self.recent.copy_(recent)
        self._worst.zero_()
