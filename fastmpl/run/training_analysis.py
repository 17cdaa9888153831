"""Measures what `run.analyse` asks for: accuracies on training images, and the distributions that the teacher gives.

It only looks: no weight, running statistic or random draw of the run changes. A run without `run.analyse` makes none of it.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpl.config import Config
from fastmpl.data.build import Data
from fastmpl.data.memory.evaluation_set import DecodedEvaluationSet, EvaluationSet
from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.protocol import RunLearner
from fastmpl.run.scores import Infer, Network, inferences, score
from fastmpl.telemetry.training_analysis import DOZEN, Targets, TrainingAccuracy, moments

MOST: Final = 2000  # images of a kind that are measured
DIGITS: Final = 5  # of a probability in the log
Kind = Literal["labelled", "unlabelled"]


class TrainingAnalysis:
    """Fixed training images of a run, and what its networks say of them. All ranks call it alike."""

    def __init__(self, config: Config, data: Data, device: torch.device, ranks: Ranks) -> None:
        self._config, self._data, self._device, self._ranks = config, data, device, ranks
        members = {"labelled": data.split.labelled, "unlabelled": data.split.unlabelled}
        self._chosen = {name: _choose(index, config.run.seed) for name, index in members.items()}
        self._moments = moments(config.run.steps)

    def is_moment(self, step: int) -> bool:
        """Whether the distributions of the dozen images are kept after this step."""
        return step in self._moments

    def measure_accuracies(self, step: int, networks: Mapping[Network, RunLearner]) -> Iterator[TrainingAccuracy]:
        """The accuracy of each network on labelled and on unlabelled images whose class is known."""
        for name, infer, _ in inferences(networks):
            for images in ("labelled", "unlabelled"):
                index = self._known(images)
                if len(index):
                    held = self._inputs(index, of_store=name == "teacher" and bool(self._config.data.store))
                    yield TrainingAccuracy(step, name, images, self._accuracy(infer, held), len(index))

    def measure_targets(self, step: int, teacher: RunLearner) -> Targets | None:
        """The distributions of a teacher that learns; None where there are no unlabelled images."""
        index = self._chosen["unlabelled"]
        if not len(index):
            return None
        held = self._inputs(index, of_store=bool(self._config.data.store))
        with teacher.use_mean_statistics():
            logits = torch.cat([teacher.infer(images) for images, _ in held.batches(self._device)])
        shares = torch.softmax(logits.double() / self._config.method.temperature, -1).cpu()
        best = shares.max(-1)
        entropy = torch.special.entr(shares).sum(-1)
        found = Targets(step, float(entropy.mean()), float(best.values.mean()), best.indices.tolist())
        if not self.is_moment(step):
            return found
        dozen = index[:DOZEN]
        return found._replace(
            probabilities=[[round(value, DIGITS) for value in row] for row in shares[:DOZEN].tolist()],
            names=self._data.training_names(dozen),
            truth=self._data.truth[dozen].tolist(),
            classes=self._data.classes,
        )

    def _accuracy(self, infer: Infer, held: EvaluationSet) -> float:
        ranks = self._ranks
        return score(infer, held.part(ranks.rank, ranks.size), self._device, len(held), ranks).accuracy

    def _known(self, images: Kind) -> NDArray[np.int64]:
        index = self._chosen[images]
        return index[self._data.truth[index].numpy() >= 0]

    def _inputs(self, index: NDArray[np.int64], *, of_store: bool) -> EvaluationSet:
        """The images as they are evaluated, or their stored distributions, which a reduced teacher sees."""
        if not of_store:
            return self._data.examples(index)
        rows = self._data.stored_probabilities(index)
        assert rows is not None
        return DecodedEvaluationSet(rows.float(), self._data.truth[index], 0, None)


def _choose(members: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """At most MOST of them, by lot."""
    return np.random.default_rng(seed).permutation(np.sort(members))[:MOST]


def analysed_images(data: Data, seed: int) -> NDArray[np.int64]:
    """The unlabelled images whose distributions are kept over training."""
    return _choose(data.split.unlabelled, seed)[:DOZEN]
