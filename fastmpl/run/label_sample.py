"""The pseudo labels of some unlabelled images at the end of a run, as its student got them."""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fastmpl.config import Config
from fastmpl.data.build import Data
from fastmpl.data.view_stream import Views
from fastmpl.run.build import Trainee
from fastmpl.run.thumbnails import make_thumbnails
from fastmpl.run.training_analysis import analysed_images
from fastmpl.step.single_network_step import SingleNetworkStep
from fastmpl.telemetry.predictions import Ints, LabelSample

SAMPLE: Final = 500  # images that are labelled
SHOWN: Final = 24  # of them with pictures
BATCH: Final = 50


class Labelling(NamedTuple):
    """Whose logits of which view become labels, and which of these count.

    `infer` maps images to logits, or stored probabilities of them where `of_store`.
    """

    labeller: str
    view: Literal["weak", "strong"]
    temperature: float
    threshold: float
    infer: Callable[[Tensor], Tensor]
    of_store: bool = False


def labelling_of(config: Config, trainee: Trainee) -> Labelling | None:
    """How the run labels unlabelled images at its end; None for a method without pseudo labels."""
    method, of_store = config.method, bool(config.data.store)
    if trainee.teacher is not None:
        threshold = config.uda.threshold if config.uda.weight > 0 and method.name == "mpl" else 0.0
        return Labelling("teacher", method.label_view, method.temperature, threshold, trainee.teacher.infer, of_store)
    take = trainee.step.take
    if not isinstance(take, SingleNetworkStep) or take.method.labeller == "none":
        return None
    if method.name == "uda":
        return Labelling("student", "weak", config.uda.temperature, config.uda.threshold, trainee.student.infer)
    fixed = take.fixed_teacher
    threshold = method.threshold if method.name == "pseudo_label" else 0.0
    if fixed is None:
        return Labelling("student", method.label_view, method.temperature, threshold, trainee.student.infer)
    return Labelling("fixed teacher", method.label_view, method.temperature, threshold, fixed, of_store)


def _sample_members(unlabelled: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most SAMPLE of the unlabelled images, evenly spaced: a set in the order of its classes has some of each."""
    places = np.linspace(0, len(unlabelled) - 1, min(SAMPLE, len(unlabelled)))
    return np.sort(unlabelled)[np.unique(places.round().astype(np.int64))]


def _label(how: Labelling, data: Data, views: Views, device: torch.device) -> Float[Tensor, "n K"]:
    """The distributions that the student learns, on the host."""
    given: Tensor | None = getattr(views, how.view)
    if how.of_store:
        given = data.stored_probabilities(views.index.cpu().numpy())
    assert given is not None
    return torch.softmax(how.infer(given.to(device).float()).double() / how.temperature, -1).cpu()


def _rows_to_show(label: Ints, confidence: NDArray[np.float32], truth: Ints, besides: Ints) -> Ints:
    """A third each: the most confident wrong labels where truths are known, the least confident, and an even choice.

    besides: rows that are shown in any case.
    """
    third, by_confidence = SHOWN // 3, np.argsort(-confidence, kind="stable")
    wrong = by_confidence[(truth[by_confidence] >= 0) & (label != truth)[by_confidence]][:third]
    doubtful = by_confidence[::-1][:third]
    even = np.linspace(0, len(label) - 1, min(SHOWN, len(label))).round().astype(np.int64)
    chosen = list(dict.fromkeys([*wrong, *doubtful, *even]))[:SHOWN]
    return np.array(list(dict.fromkeys([*chosen, *besides])), np.int64)


@torch.no_grad()
def sample_labels(config: Config, trainee: Trainee, data: Data, device: torch.device) -> LabelSample | None:
    """The labels of a fixed sample of the unlabelled images; None where the run has none.

    Every rank calls it and labels the same images, because a sharded network needs all ranks in every pass.
    """
    how, members = labelling_of(config, trainee), _sample_members(data.split.unlabelled)
    if how is None or not len(members):
        return None
    analysed = analysed_images(data, config.run.seed) if config.run.analyse else members[:0]
    members = np.union1d(members, analysed)
    batch = min(BATCH, len(members))
    stream, rows, indices = data.view_pairs(members, batch), [], []
    weak, strong = [], []
    for _ in range(-(-len(members) // batch)):
        views = stream.next()
        rows.append(_label(how, data, views, device))
        indices.append(views.index.cpu().clone())
        if data.normalisation is not None:
            assert views.strong is not None
            weak.append(make_thumbnails(views.weak, data.normalisation))
            strong.append(make_thumbnails(views.strong, data.normalisation))
    count = len(members)  # the last batch may begin the set again
    index, shares = torch.cat(indices)[:count].numpy(), torch.cat(rows)[:count].nan_to_num(0.0)
    best = shares.max(-1)
    label, confidence, truth = best.indices.numpy(), best.values.float().numpy(), data.truth[index].numpy()
    shown = (
        _rows_to_show(label, confidence, truth, np.flatnonzero(np.isin(index, analysed)))
        if weak
        else np.empty(0, np.int64)
    )
    pictures = [np.concatenate(parts)[shown] if parts else np.empty((0, 1, 1, 3), np.uint8) for parts in (weak, strong)]
    names = np.array(data.training_names(index), np.str_)
    return LabelSample(
        names, truth, label, confidence, shown, pictures[0], pictures[1], how.labeller, how.view, how.threshold
    )
