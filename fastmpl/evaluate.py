"""How well a network classifies images that it was not trained on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmpl.data.build import Data
from fastmpl.data.held import Held
from fastmpl.learners.plain import PlainLearner

Network = Literal["student", "average", "teacher"]
Split = Literal["validation", "test"]
Infer = Callable[[Tensor], Tensor]


class Score(NamedTuple):
    """Accuracy is a share of the images, loss the mean cross-entropy."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def score(infer: Infer, held: Held, device: torch.device) -> Score:
    """The score of `infer`, images -> logits on `device`, over labelled images; one read of the device."""
    right, loss = torch.zeros((), device=device), torch.zeros((), device=device)
    for images, targets in held.batches(device):
        logits = infer(images)
        right += (logits.argmax(-1) == targets).sum()
        loss += F.cross_entropy(logits, targets, reduction="sum")
    return Score(float(right) / len(held), float(loss) / len(held), len(held))


def inferences(networks: Mapping[Network, PlainLearner]) -> Iterator[tuple[Network, Infer]]:
    """Each network by name, and "average" where one keeps its average; a network is to be used before the next is asked."""
    for name, learner in networks.items():
        yield name, learner.infer
        if learner.average is not None:
            with learner.averaged():
                yield "average", learner.infer


class Judge:
    """Scores networks on the validation images, and on the test images, where there are any."""

    def __init__(self, data: Data, device: torch.device) -> None:
        held: dict[Split, Held | None] = {"validation": data.validation, "test": data.test}
        self.device = device
        self.splits = {name: split.placed(device) for name, split in held.items() if split is not None}

    def scores(self, infer: Infer) -> dict[Split, Score]:
        """By split."""
        return {name: score(infer, held, self.device) for name, held in self.splits.items()}

    def accuracies(self, networks: Mapping[Network, PlainLearner]) -> dict[Network, dict[Split, float]]:
        """By network and split."""
        return {
            name: {split: found.accuracy for split, found in self.scores(infer).items()}
            for name, infer in inferences(networks)
        }
