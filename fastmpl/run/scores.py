"""Accuracy and loss of networks on images that they were not trained on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.build import Data
from fastmpl.data.memory.evaluation_set import EvaluationSet
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.learners.protocol import RunLearner

Network = Literal["student", "average", "teacher"]
Split = Literal["validation", "test"]
Infer = Callable[[Tensor], Tensor]


class Score(NamedTuple):
    """How a network does on `images` labelled images. Accuracy, recall and F1 are in [0, 1], the loss is in nats.

    The macro means are over the classes that there are images of, each class counting alike.
    """

    accuracy: float
    loss: float  # mean cross-entropy
    images: int
    macro_recall: float
    macro_f1: float


class Evaluated(NamedTuple):
    """A network as it is evaluated now: its averaged weights, for example."""

    name: Network
    infer: Infer
    weights: Callable[[], Iterator[tuple[str, Tensor]]]  # its state dict, as `RunLearner.weights`


@torch.no_grad()
def score(
    infer: Infer,
    held: EvaluationSet,
    device: torch.device,
    count: int | None = None,
    ranks: Ranks = ALONE,
    watch: Callable[[Tensor, Tensor], None] = lambda logits, targets: None,
) -> Score:
    """The score of `infer`, which maps images to logits on `device`. It reads the device once.

    held: this rank's part of `count` labelled images; all of them for one process. Images that cannot be read are left out.
    watch: called with the logits and the labels of each batch.
    """
    count = len(held) if count is None else count
    tally: Tensor | None = None
    passes = 0
    for images, targets in held.batches(device):
        if len(targets):  # a rank may have no images
            logits = infer(images)
            watch(logits, targets)
            found = _tally(logits, targets)
            tally = found if tally is None else tally + found
            passes += 1
    # a dummy image keeps ranks with fewer batches in the collectives
    for _ in range(passes, held.batch_count(-(-count // ranks.size))):
        logits = infer(held.dummy_image(device))
        if tally is None:
            tally = torch.zeros(1 + 3 * logits.shape[1], dtype=torch.float64, device=device)
    if tally is None:
        return Score(0.0, 0.0, 0, 0.0, 0.0)
    ranks.all_reduce_sum_([tally])
    return _score_of(tally.cpu())


def _tally(logits: Float[Tensor, "n K"], targets: Int[Tensor, "n"]) -> Float[Tensor, " sums"]:
    """The sum of the losses; then of each class its right answers, all answers that name it, and its images."""
    classes, answers = logits.shape[1], logits.argmax(-1)
    counts = torch.zeros(3, classes, dtype=torch.float64, device=logits.device)
    ones = torch.ones(len(targets), dtype=torch.float64, device=logits.device)
    counts[0].index_add_(0, targets, (answers == targets).double())
    counts[1].index_add_(0, answers, ones)
    counts[2].index_add_(0, targets, ones)
    loss = F.cross_entropy(logits, targets, reduction="sum").double()
    return torch.cat([loss[None], counts.flatten()])


def _score_of(tally: Float[Tensor, " sums"]) -> Score:
    loss, (right, answers, images) = float(tally[0]), tally[1:].view(3, -1)
    total, there = float(images.sum()), images > 0
    recall = (right / images)[there]
    f1 = (2 * right / (answers + images))[there]
    macro_recall, macro_f1 = (float(values.mean()) if len(values) else 0.0 for values in (recall, f1))
    return Score(float(right.sum()) / max(total, 1), loss / max(total, 1), int(total), macro_recall, macro_f1)


def inferences(networks: Mapping[Network, RunLearner]) -> Iterator[Evaluated]:
    """Each network by name, and "average" for one that keeps averaged weights. Use each before asking for the next."""
    for name, learner in networks.items():
        with learner.use_mean_statistics():
            yield Evaluated(name, learner.infer, learner.weights)
            if learner.has_average:
                with learner.use_average():
                    yield Evaluated("average", learner.infer, learner.weights)


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
            for name, infer, _ in inferences(networks)
        }
