"""Single images in a page: each with its pictures as data URIs, its file, and what was said of it."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from fastmpl.telemetry.predictions import LabelSample, Pictures, Predictions
from fastmpl.telemetry.training_analysis import Targets

SMALL: Final = 48  # pixels of a side, up to which a picture is stored without loss
QUALITY: Final = 82  # of the JPEG of a larger one
MOST: Final = 12  # cards of a row of errors


class Moment(NamedTuple):
    """The likeliest class of an image at one step, and its probability."""

    step: int
    label: str
    share: float


class Card(NamedTuple):
    """One image: its views as data URIs with their names, and its words. `wrong`: whether `label` differs from `truth`."""

    pictures: Sequence[tuple[str, str]]  # (name of the view, data URI)
    file: str
    label: str
    confidence: float
    truth: str = ""  # empty where unknown
    second: str = ""
    second_confidence: float = 0.0
    moments: Sequence[Moment] = ()  # of its label over training, where that was measured

    @property
    def wrong(self) -> bool:
        return bool(self.truth) and self.truth != self.label


def data_uri(pixels: Pictures) -> str:
    """uint8 [side, side, 3] as a data URI: PNG where it is small, JPEG where it is not."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    form = "png" if len(pixels) <= SMALL else "jpeg"
    if form == "png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _card(found: Predictions, classes: tuple[str, ...], row: int) -> Card:
    place = np.flatnonzero(found.shown == row)
    pictures = [("", data_uri(found.pictures[place[0]]))] if place.size else []
    return Card(
        pictures,
        str(found.names[row]),
        classes[found.predicted[row]],
        float(found.confidence[row]),
        classes[found.truth[row]],
        classes[found.second[row]],
        float(found.second_confidence[row]),
    )


def _cards(found: Predictions, classes: tuple[str, ...], rows: Iterable[int]) -> list[Card]:
    """Cards of the first MOST rows: of those with pictures, where there are any."""
    pictured = set(found.shown.tolist())
    kept = [row for row in rows if row in pictured or not pictured]
    return [_card(found, classes, row) for row in kept[:MOST]]


def error_cards(found: Predictions, classes: tuple[str, ...]) -> list[Card]:
    """The errors of which the network was most confident."""
    wrong = np.flatnonzero(~found.right)
    return _cards(found, classes, wrong[np.argsort(-found.confidence[wrong], kind="stable")].tolist())


def doubtful_cards(found: Predictions, classes: tuple[str, ...]) -> list[Card]:
    """The images whose two likeliest classes are nearest to each other, right or wrong."""
    margins = found.confidence - found.second_confidence
    return _cards(found, classes, np.argsort(margins, kind="stable").tolist())


def moments_by_name(targets: Sequence[Targets]) -> dict[str, list[Moment]]:
    """How the label of each image moved whose distributions were measured over training; what is damaged is left out."""
    found: dict[str, list[Moment]] = {}
    for one in targets:
        try:
            for name, shares in zip(one.names, one.probabilities, strict=True):
                best = max(range(len(shares)), key=lambda number, shares=shares: float(shares[number]))  # type: ignore[misc]
                moment = Moment(int(one.step), str(one.classes[best]), float(shares[best]))
                found.setdefault(str(name), []).append(moment)
        except (TypeError, ValueError, IndexError):
            continue
    return found


def label_cards(
    sample: LabelSample, classes: tuple[str, ...], moments: Mapping[str, Sequence[Moment]] = MappingProxyType({})
) -> list[Card]:
    """The pseudo labels with both views: wrong ones first, the most confident first. moments: by the image's name."""
    cards = []
    for place, row in enumerate(sample.shown.tolist()):
        truth = classes[sample.truth[row]] if sample.truth[row] >= 0 else ""
        views = [(name, data_uri(of[place])) for name, of in (("weak", sample.weak), ("strong", sample.strong))]
        name, label = str(sample.names[row]), classes[sample.label[row]]
        card = Card(views, name, label, float(sample.confidence[row]), truth, moments=moments.get(name, ()))
        cards.append(card)
    return sorted(cards, key=lambda card: (not card.wrong, -card.confidence, card.file))
