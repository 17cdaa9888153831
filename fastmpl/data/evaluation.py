"""Makes evaluation sets: in memory for decoded images, decoded at every evaluation for encoded ones."""

from typing import NamedTuple

import numpy as np
import torch

from fastmpl.config.meaning import decodes_always
from fastmpl.data.dataset import Images, Labels
from fastmpl.data.memory.evaluation_set import DecodedEvaluationSet, EvaluationSet
from fastmpl.data.normalise import Normalisation
from fastmpl.data.settings import DataSettings, Interpolation, interpolation_of


class Framing(NamedTuple):
    """How a picture becomes the square that a network is shown.

    The shorter side is resized to the square's side / `centre_crop`, and the middle is taken.
    """

    centre_crop: float
    interpolation: Interpolation


def framing_of(settings: DataSettings) -> Framing:
    """A picture that is decoded once is shown up to the edge of its shorter side."""
    return Framing(settings.centre_crop if decodes_always(settings) else 1.0, interpolation_of(settings))


def shown_side(settings: DataSettings) -> int:
    """Side of the square, in pixels, that a picture is decoded to; a network sees its middle."""
    return round(settings.image_size / settings.centre_crop) if decodes_always(settings) else settings.image_size


def make_evaluation_set(
    images: Images,
    labels: Labels,
    settings: DataSettings,
    normalisation: Normalisation | None,
    threads: int = 1,
    device: int | None = None,
) -> EvaluationSet:
    """The evaluation set of `images`, neither shifted nor flipped. `device`: a CUDA device that decodes, None: the CPU."""
    truth = torch.from_numpy(labels)
    if isinstance(images, np.ndarray):
        pixels, form = torch.from_numpy(images), interpolation_of(settings)
        return DecodedEvaluationSet(pixels, truth, settings.image_size, normalisation, form)
    from fastmpl.data.streaming.encoded_pipeline import machine  # here, because others need no DALI
    from fastmpl.data.streaming.evaluation_set import EncodedEvaluationSet

    assert normalisation is not None
    where = machine(settings, device, threads)
    form = interpolation_of(settings)
    return EncodedEvaluationSet(images, truth, settings.image_size, settings.centre_crop, normalisation, where, form)
