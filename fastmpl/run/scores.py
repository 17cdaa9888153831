"""Accuracy and loss of networks on images that they were not trained on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmpl.data.build import Data
from fastmpl.data.memory.evaluation_set import EvaluationSet
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.learners.protocol import RunLearner

Network = Literal["student", "average", "teacher"]
Split = Literal["validation", "test"]
Infer = Callable[[Tensor], Tensor]


class Score(NamedTuple):
    """Accuracy in [0, 1] and mean cross-entropy (nats) over `images`."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def score(
    infer: Infer, held: EvaluationSet, device: torch.device, count: int | None = None, ranks: Ranks = ALONE
) -> Score:
    """The score of `infer`, which maps images to logits on `device`. It reads the device once.

    held: this rank's part of `count` labelled images; all of them for one process. Images that cannot be read are left out.
    """
    count = len(held) if count is None else count
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # right answers, sum of losses, images
    passes = 0
    for images, targets in held.batches(device):
        if len(targets):  # a rank may have no images
            logits = infer(images)
            loss = F.cross_entropy(logits, targets, reduction="sum")
            sums[:2] += torch.stack([(logits.argmax(-1) == targets).sum(), loss])
            sums[2] += len(targets)
            passes += 1
    # a dummy image keeps ranks with fewer batches in the collectives
    for _ in range(passes, held.batch_count(-(-count // ranks.size))):
        infer(held.dummy_image(device))
    ranks.all_reduce_sum_([sums])
    right, loss_sum, count = sums.tolist()
    return Score(right / max(count, 1), loss_sum / max(count, 1), int(count))


def inferences(networks: Mapping[Network, RunLearner]) -> Iterator[tuple[Network, Infer]]:
    """Each network by name, and "average" for one that keeps averaged weights. Use each before asking for the next."""
    for name, learner in networks.items():
        with learner.use_mean_statistics():
            yield name, learner.infer
            if learner.has_average:
                with learner.use_average():
                    yield "average", learner.infer


class Scorer:
    """Scores networks on the validation and test images, if there are any. Each rank scores its part of them."""

    def __init__(self, data: Data, device: torch.device, ranks: Ranks = ALONE) -> None:
        held: dict[Split, EvaluationSet | None] = {"validation": data.validation, "test": data.test}
        self.ranks, self.device = ranks, device
        self.counts = {name: len(split) for name, split in held.items() if split is not None}
        self.splits = {
            name: split.part(ranks.rank, ranks.size).to(device) for name, split in held.items() if split is not None
        }

    def scores(self, infer: Infer) -> dict[Split, Score]:
        """The score on each split, over the images of all ranks."""
        return {
            name: score(infer, held, self.device, self.counts[name], self.ranks) for name, held in self.splits.items()
        }

    def accuracies(self, networks: Mapping[Network, RunLearner]) -> dict[Network, dict[Split, float]]:
        """Accuracies in [0, 1] by network and split."""
        return {
            name: {split: found.accuracy for split, found in self.scores(infer).items()}
            for name, infer in inferences(networks)
        }
