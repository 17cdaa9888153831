"""Images with labels -> what a network is evaluated on: held in memory where they are decoded, streamed where not."""

import numpy as np
import torch

from fastmpl.config.rules import decodes_always
from fastmpl.data.dataset import Images, Labels
from fastmpl.data.memory.evaluation_set import DecodedEvaluationSet, EvaluationSet
from fastmpl.data.normalise import Normalisation
from fastmpl.data.settings import DataSettings


def shown_side(settings: DataSettings) -> int:
    """Pixels of the square that a picture is decoded to, of which the middle is what a network is shown."""
    return round(settings.image_size / settings.centre_crop) if decodes_always(settings) else settings.image_size


def make_evaluation_set(
    images: Images,
    labels: Labels,
    settings: DataSettings,
    normalisation: Normalisation | None,
    threads: int = 1,
    device: int | None = None,
) -> EvaluationSet:
    """`images` as they are evaluated: neither shifted nor flipped. `device`: as `build` has it, for streamed ones."""
    truth = torch.from_numpy(labels)
    if isinstance(images, np.ndarray):
        return DecodedEvaluationSet(torch.from_numpy(images), truth, settings.image_size, normalisation)
    from fastmpl.data.streaming.encoded_pipeline import machine  # here, because others need no DALI
    from fastmpl.data.streaming.evaluation_set import EncodedEvaluationSet

    assert normalisation is not None
    where = machine(settings, device, threads)
    return EncodedEvaluationSet(images, truth, settings.image_size, settings.centre_crop, normalisation, where)
