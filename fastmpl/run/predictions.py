"""What one network says of each validation and test image, and which of these images a report shows.

Written at the end of a run, as `predictions.npz`, with the pseudo labels of `fastmpl.run.label_sample`.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fastmpl.config import Config
from fastmpl.data.build import Data
from fastmpl.data.memory.evaluation_set import EvaluationSet
from fastmpl.distributed.ranks import Ranks
from fastmpl.run.build import Trainee
from fastmpl.run.folder import replace_file
from fastmpl.run.label_sample import sample_labels
from fastmpl.run.scores import Infer, Split
from fastmpl.run.thumbnails import make_thumbnails
from fastmpl.telemetry.predictions import FILE, Ints, Pictures, Predictions, Record

ERRORS, DOUBTFUL = 24, 12  # images with pictures, at most: the most confident errors, the smallest margins


@torch.no_grad()
def _answer_rows(infer: Infer, held: EvaluationSet, device: torch.device, ranks: Ranks) -> Float[Tensor, "N 5"]:
    """Position, predicted class, its probability, the class after it and its probability, of every image that can be read.

    held: the whole set; each rank answers for its part, and gets the rows of all.
    """
    mine, rows, passes = held.number().part(ranks.rank, ranks.size), [], 0
    for images, positions in mine.batches(device):
        if not len(positions):
            continue
        logits = infer(images)
        predicted = logits.argmax(-1, keepdim=True)
        shares = torch.softmax(logits.double(), -1)
        confidence = shares.gather(1, predicted)
        second, after = shares.scatter(1, predicted, -1.0).max(-1, keepdim=True)
        rows.append(torch.cat([positions[:, None].double(), predicted, confidence, after, second], 1).cpu())
        passes += 1
    for _ in range(passes, mine.batch_count(-(-len(held) // ranks.size))):  # ranks with fewer batches join the others
        infer(held.dummy_image(device))
    gathered = ranks.all_gather_object(torch.cat(rows) if rows else torch.empty(0, 5, dtype=torch.float64))
    return torch.cat(gathered)


def _rows_to_show(found: Predictions) -> Ints:
    """The rows of the most confident errors and of the smallest margins, each once."""
    wrong = np.flatnonzero(~found.right)
    errors = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:ERRORS]
    doubtful = np.argsort(found.confidence - found.second_confidence, kind="stable")[:DOUBTFUL]
    return np.union1d(errors, doubtful).astype(np.int64)


def _draw_pictures(held: EvaluationSet, positions: NDArray[np.int64], data: Data) -> tuple[Ints, Pictures]:
    """Which of `positions` can be read, as places in it, and their pictures."""
    if data.normalisation is None or not len(positions):
        return np.empty(0, np.int64), np.empty((0, 1, 1, 3), np.uint8)
    places, pictures = [], []
    for images, numbers in held.take(torch.from_numpy(positions)).number().batches():
        places.append(numbers.cpu().numpy())
        pictures.append(make_thumbnails(images, data.normalisation))
    return np.concatenate(places), np.concatenate(pictures)


def predict_split(infer: Infer, data: Data, split: Split, device: torch.device, ranks: Ranks) -> Predictions | None:
    """The answers of `infer` on a split, and pictures of the images to show; None without such images.

    Every rank calls it; the first rank alone makes pictures.
    """
    held = data.validation if split == "validation" else data.test
    if held is None:
        return None
    rows = _answer_rows(infer, held, device, ranks)
    positions, predicted, second = (rows[:, column].long().numpy() for column in (0, 1, 3))
    confidence, second_confidence = (rows[:, column].nan_to_num(0.0).float().numpy() for column in (2, 4))
    names = np.array(data.evaluated_names(split), np.str_)[positions]
    truth = held.labels.cpu().numpy()[positions]
    empty = np.empty((0, 1, 1, 3), np.uint8)
    found = Predictions(names, truth, predicted, confidence, second, second_confidence, np.empty(0, np.int64), empty)
    if ranks.rank:
        return found
    chosen = _rows_to_show(found)
    places, pictures = _draw_pictures(held, positions[chosen], data)
    return found._replace(shown=chosen[places], pictures=pictures)


class Shipped(NamedTuple):
    """The network whose weights a run leaves, as a report calls it; `step` is -1 where its weights are not one step's."""

    infer: Infer
    name: str
    step: int


def write_predictions(
    folder: Path, shipped: Shipped, config: Config, trainee: Trainee, data: Data, device: torch.device, ranks: Ranks
) -> None:
    """Writes `predictions.npz` into the run's folder, on the first rank; every rank calls it.

    Raises StorageError where it cannot be written.
    """
    splits: dict[str, Predictions] = {}
    asked: tuple[Split, ...] = ("validation", "test")
    for split in asked:
        if (found := predict_split(shipped.infer, data, split, device, ranks)) is not None:
            splits[split] = found
    with ExitStack() as held:
        for learner in trainee.learners().values():
            held.enter_context(learner.use_mean_statistics())
        labels = sample_labels(config, trainee, data, device)
    if ranks.rank == 0:
        record = Record(data.classes, shipped.name, shipped.step, splits, labels)
        replace_file(folder / FILE, record.encode())
