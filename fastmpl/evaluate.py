"""How well a network classifies images that it was not trained on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.build import Data, Held
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.ranks import ALONE, Ranks

Network = Literal["student", "average", "teacher"]
Split = Literal["validation", "test"]
Infer = Callable[[Tensor], Tensor]
ROWS = 1000  # images a pass


class Score(NamedTuple):
    """Accuracy is a share of the images, loss the mean cross-entropy."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def score(
    infer: Infer,
    images: Float[Tensor, "N *image"],
    labels: Int[Tensor, "N"],
    count: int | None = None,
    ranks: Ranks = ALONE,
) -> Score:
    """The score of `infer`, images -> logits, over labelled images; one read of the device.

    images, labels: this rank's part of `count` images; of all of them, for one process.
    """
    count = len(labels) if count is None else count
    sums = torch.zeros(2, dtype=torch.float64, device=labels.device)  # how many are right, loss
    for rows, targets in zip(torch.split(images, ROWS), torch.split(labels, ROWS), strict=True):
        if len(rows):  # a rank may have none
            logits = infer(rows)
            loss = F.cross_entropy(logits, targets, reduction="sum")
            sums += torch.stack([(logits.argmax(-1) == targets).sum(), loss])
    ranks.sum_([sums])
    right, loss_sum = sums.tolist()
    return Score(right / count, loss_sum / count, count)


def inferences(networks: Mapping[Network, PlainLearner]) -> Iterator[tuple[Network, Infer]]:
    """Each network by name, and "average" where one keeps its average; a network is to be used before the next is asked."""
    for name, learner in networks.items():
        with learner.agreed():
            yield name, learner.infer
            if learner.average is not None:
                with learner.averaged():
                    yield "average", learner.infer


class Judge:
    """Scores networks on the validation images, where there are any, and on the test images; each rank sees its part."""

    def __init__(self, data: Data, device: torch.device, ranks: Ranks = ALONE) -> None:
        held: dict[Split, Held | None] = {"validation": data.validation, "test": data.test}
        self.ranks = ranks
        self.counts = {name: len(split.labels) for name, split in held.items() if split is not None}
        self.splits = {
            name: Held(_part(split.images, ranks).to(device), _part(split.labels, ranks).to(device))
            for name, split in held.items()
            if split is not None
        }

    def scores(self, infer: Infer) -> dict[Split, Score]:
        """By split, over the images of all ranks."""
        return {
            name: score(infer, held.images, held.labels, self.counts[name], self.ranks)
            for name, held in self.splits.items()
        }

    def accuracies(self, networks: Mapping[Network, PlainLearner]) -> dict[Network, dict[Split, float]]:
        """By network and split."""
        return {
            name: {split: found.accuracy for split, found in self.scores(infer).items()}
            for name, infer in inferences(networks)
        }


def _part(rows: Tensor, ranks: Ranks) -> Tensor:
    return rows.tensor_split(ranks.size)[ranks.rank]
