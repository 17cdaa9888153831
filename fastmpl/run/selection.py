"""The student that did best on the validation images so far: its score, its step and a copy of its weights.

Of two students with the same score the one with the lower loss is better. Few validation images often give two students
the same accuracy, and the first of them is the one that has learned least.

The copy lies in the host's memory of rank 0 and in every checkpoint, so that a run that continues ships the network that
the uninterrupted run ships. It costs one more copy of the student's weights in a checkpoint.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal

from torch import Tensor

from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.run.scores import Network, Score, Split

SelectBy = Literal["accuracy", "macro_recall", "macro_f1", "loss"]
PREFIX: Final = "selected/"  # of its tensors in a checkpoint


class Selection:
    """Keeps the best of the students that `consider` is shown. All ranks call it alike; rank 0 keeps the weights."""

    def __init__(self, select_by: SelectBy, ranks: Ranks = ALONE) -> None:
        self.best: dict[str, Any] | None = None  # step, network, score, and accuracies by split
        self.weights: dict[str, Tensor] = {}  # on the CPU
        self.stale = 0  # evaluations since the best one
        self._select_by, self._ranks = select_by, ranks

    def consider(
        self,
        step: int,
        network: Network,
        scores: Mapping[Split, Score],
        weights: Callable[[], Iterator[tuple[str, Tensor]]],
    ) -> bool:
        """Keeps this network if its validation score is the best so far, by the loss where equal; says whether it is.

        weights: its state dict, one whole tensor at a time, through which all ranks go.
        """
        if "validation" not in scores:
            return False
        value, loss = getattr(scores["validation"], self._select_by), scores["validation"].loss
        if not (math.isfinite(value) and math.isfinite(loss)):
            return False
        if self.best is not None and not self._is_better(value, loss, self.best):
            return False
        self.best = {"step": step, "network": network}
        self.best |= {str(split): score.accuracy for split, score in scores.items()} | {"score": value, "loss": loss}
        is_first = self._ranks.rank == 0
        self.weights = {name: _copy_to_host(tensor) for name, tensor in weights() if is_first}
        return True

    def end_evaluation(self, *, improved: bool) -> None:
        """Counts the evaluations that found nothing better."""
        self.stale = 0 if improved else self.stale + 1

    def state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, on rank 0; the others have none."""
        return {f"{PREFIX}{name}": value for name, value in self.weights.items()}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the tensors."""
        return {"best": self.best, "evaluations_since_best": self.stale}

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
        """Continues from a checkpoint. A sentence for the user where it names a best student and lacks its weights."""
        found = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        self.best, self.stale = facts["best"], facts.get("evaluations_since_best", 0)
        self.weights = found if self._ranks.rank == 0 else {}
        if self.best is None or found:
            return None
        step, self.best, self.stale = self.best["step"], None, 0
        return (
            f"The checkpoint is of a version that kept no weights of the best student, of step {step}: the network is "
            "selected among those from here on."
        )

    def _is_better(self, value: float, loss: float, best: Mapping[str, Any]) -> bool:
        than = _score_of(best)
        if value == than:
            return bool(loss < best.get("loss", -math.inf))  # an older checkpoint kept no loss: its student stays
        return value < than if self._select_by == "loss" else value > than


def _score_of(best: Mapping[str, Any]) -> float:
    return float(best.get("score", best["validation"]))


def _copy_to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
