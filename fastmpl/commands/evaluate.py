"""A finished run's student on labelled images: its own data's, or those of a folder; overall and class by class."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmpl.data.dataset import select_images
from fastmpl.data.errors import DataError
from fastmpl.data.evaluation import make_evaluation_set, shown_side
from fastmpl.data.memory.evaluation_set import EvaluationSet
from fastmpl.data.normalise import centre
from fastmpl.data.prepare import prepare
from fastmpl.data.readers.folder import read_labelled
from fastmpl.data.settings import interpolation_of
from fastmpl.errors import ConfigError
from fastmpl.run.classifier import Classifier, load_classifier
from fastmpl.run.headline import NetworkName
from fastmpl.run.scores import score
from fastmpl.untrusted import printable

SHOWN: Final = 10  # classes without an image that are named


class SetScores(NamedTuple):
    """Of one set of N images; `confusion` int64 [K, K] counts them by true class (rows) and predicted class."""

    name: str
    loss: float
    confusion: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())


def _score_set(student: Classifier, name: str, held: EvaluationSet) -> SetScores:
    """By the arithmetic of the run's own evaluation (`fastmpl.run.scores`): equal numbers on the same machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student.module.to(device)
    count = len(student.classes)
    pairs = torch.zeros(count * count, dtype=torch.int64, device=device)

    def count_pairs(logits: Tensor, targets: Tensor) -> None:
        pairs.add_(torch.bincount(targets * count + logits.argmax(-1), minlength=count * count))

    found = score(student.infer, held.to(device), device, watch=count_pairs)
    return SetScores(name, found.loss, pairs.reshape(count, count).cpu().numpy())


def image_sets(student: Classifier, data: Path | None) -> Iterator[tuple[str, EvaluationSet]]:
    """The run's validation and test images, or those of the folder `data`."""
    settings, size = student.config.data, student.image_shape[-1]
    if data is not None:
        if student.normalisation is None:
            raise ConfigError("The run classifies points or stored features, not images: leave --data out.")
        arrays = read_labelled(data, student.classes, shown_side(settings), interpolation_of(settings))
        images = centre(np.asarray(arrays.test_images), size)
        yield str(data), make_evaluation_set(images, arrays.test_labels, settings, student.normalisation)
        return
    prepared = prepare(student.config.data, student.config.run.seed)
    if prepared.arrays.classes != student.classes:
        raise DataError(
            "The classes of the run's data have changed since it was trained. Name images by --data FOLDER."
        )
    index = prepared.split.validation
    held = {"validation": (select_images(prepared.arrays.train_images, index), prepared.arrays.train_labels[index])}
    held["test"] = prepared.test()
    for name, (of, labels) in held.items():
        if len(labels):
            yield name, make_evaluation_set(of, labels, settings, student.normalisation, torch.get_num_threads())
    if not any(len(labels) for _, labels in held.values()):
        raise DataError("The run has neither validation nor test images. Name some by --data FOLDER.")


class Evaluation(NamedTuple):
    """What a network of a run does on sets of images; `description` says which network."""

    description: str
    classes: tuple[str, ...]
    sets: list[SetScores]


def evaluate(run: Path, data: Path | None = None, network: NetworkName | None = None) -> Evaluation:
    """How well a network of `run` does on each set of images.

    data: None for the run's own validation and test images; else a folder that holds <class>/** or test/<class>/**.
    network: None for the one in student.safetensors. Raises ConfigError where `run` has no such network, DataError where
    the images cannot be used.
    """
    student = load_classifier(run, network)
    if student.remark:
        print(printable(student.remark), file=sys.stderr)
    found = [_score_set(student, *images) for images in image_sets(student, data)]
    return Evaluation(student.description, student.classes, found)


def _format_interval(right: int, count: int) -> str:
    """Wilson's score interval of the share `right / count`, in per cent: what other images of the same kind may give."""
    z, share = 1.96, right / count
    centre, spread = share + z**2 / (2 * count), z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    low, high = ((centre + sign * spread) / (1 + z**2 / count) for sign in (-1, 1))
    return f"{100 * low:.1f} to {100 * high:.1f}"


def format_scores(classes: tuple[str, ...], found: SetScores) -> str:
    """Two lines, and a table of classes with what each is most often taken for and the classes that no image has."""
    right, wrong = found.confusion.diagonal(), found.confusion - np.diag(found.confusion.diagonal())
    total = found.confusion.sum(axis=1)
    width = max(map(len, ("class", *classes)))
    lines = [
        f"{found.name}: {100 * found.accuracy:.1f} % of {total.sum()} images are right "
        f"(95 % interval {_format_interval(int(right.sum()), int(total.sum()))}), loss {found.loss:.3f}",
        "",
        f"  {'class':{width}}  images  right    most often taken for",
    ]
    for number, name in enumerate(classes):
        if not total[number]:
            continue
        other, times = int(wrong[number].argmax()), int(wrong[number].max())
        taken = f"{classes[other]} ({times})" if times else ""
        share = f"{100 * right[number] / total[number]:5.1f} %"
        lines.append(f"  {name:{width}}  {total[number]:6}  {share}  {taken}".rstrip())
    if absent := [name for name, count in zip(classes, total, strict=True) if not count]:
        more = f" and {len(absent) - SHOWN:,} others" if len(absent) > SHOWN else ""
        lines += ["", f"  no image is of class {', '.join(absent[:SHOWN])}{more}"]
    return "\n".join(lines)
