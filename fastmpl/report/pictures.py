"""The sections of a report that speak of single images, made of `predictions.npz`."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from fastmpl.report.calibration_chart import draw_reliability, sort_into_bins
from fastmpl.report.cards import Card, doubtful_cards, error_cards, label_cards, moments_by_name
from fastmpl.report.confusion_chart import Pair, draw_confusion, worst_pairs
from fastmpl.report.drawing import Chart
from fastmpl.report.label_chart import draw_classes, labelled_classes, never_given
from fastmpl.telemetry.predictions import LabelSample, Predictions, Record
from fastmpl.telemetry.training_analysis import Targets


class Answers(NamedTuple):
    """What the network said of one split."""

    split: str
    images: int
    accuracy: float
    errors: int
    confusion: Chart
    pairs: Sequence[Pair]
    reliability: Chart
    wrong: Sequence[Card]
    doubtful: Sequence[Card]


class Labels(NamedTuple):
    """The pseudo labels of a sample of unlabelled images. right: share of correct labels of `known` images."""

    sample: LabelSample
    images: int
    confidence: float
    coverage: float
    known: int
    right: float
    by_class: Chart
    absent: Sequence[str]  # classes that no image was given
    cards: Sequence[Card]
    moved: Sequence[Card]  # with their labels over training, where these were measured


MOST_LABELS: Final = 24  # cards without a history


class Pictures(NamedTuple):
    """All of it; what the run does not have is None."""

    network: str
    answers: Answers | None
    labels: Labels | None


def _answers(split: str, found: Predictions, classes: tuple[str, ...]) -> Answers:
    return Answers(
        split=split,
        images=len(found.truth),
        accuracy=float(found.right.mean()),
        errors=int((~found.right).sum()),
        confusion=draw_confusion(found, classes),
        pairs=worst_pairs(found, classes),
        reliability=draw_reliability(sort_into_bins(found)),
        wrong=error_cards(found, classes),
        doubtful=doubtful_cards(found, classes),
    )


def _labels(sample: LabelSample, classes: tuple[str, ...], targets: Sequence[Targets]) -> Labels:
    known = sample.truth >= 0
    cards = label_cards(sample, classes, moments_by_name(targets))
    return Labels(
        sample=sample,
        images=len(sample.label),
        confidence=float(sample.confidence.mean()),
        coverage=float((sample.confidence >= sample.threshold).mean()),
        known=int(known.sum()),
        right=float((sample.label == sample.truth)[known].mean()) if known.any() else float(np.nan),
        by_class=draw_classes(labelled_classes(sample, classes)),
        absent=never_given(sample, classes) if len(sample.label) >= 10 * len(classes) else [],
        cards=[card for card in cards if not card.moments][:MOST_LABELS],
        moved=[card for card in cards if card.moments],
    )


def describe_pictures(record: Record, targets: Sequence[Targets] = ()) -> Pictures:
    """The pictures of a run: of its test images, or of its validation images where it has no others.

    targets: what the run measured of its labels over training, if it did.
    """
    split = next((name for name in ("test", "validation") if name in record.splits), None)
    answers = None
    if split is not None and len(record.splits[split].truth):
        answers = _answers(split, record.splits[split], record.classes)
    labels = record.labels
    return Pictures(
        network=record.network,
        answers=answers,
        labels=_labels(labels, record.classes, targets) if labels is not None and len(labels.label) else None,
    )
