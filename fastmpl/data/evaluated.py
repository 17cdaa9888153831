"""Images with labels -> what a network is evaluated on: held in memory where they are decoded, streamed where not."""

import numpy as np
import torch

from fastmpl.config.rules import decodes_always
from fastmpl.data.dataset import Images, Labels
from fastmpl.data.memory.held import Evaluated, Held
from fastmpl.data.normalise import Normalisation
from fastmpl.data.settings import DataSettings


def shown_side(settings: DataSettings) -> int:
    """Pixels of the square that a picture is decoded to, of which the middle is what a network is shown."""
    return round(settings.image_size / settings.centre_crop) if decodes_always(settings) else settings.image_size


def evaluated(
    images: Images,
    labels: Labels,
    settings: DataSettings,
    normalisation: Normalisation | None,
    threads: int = 1,
    device: int | None = None,
) -> Evaluated:
    """`images` as they are evaluated: neither shifted nor flipped. `device`: as `build` has it, for streamed ones."""
    truth = torch.from_numpy(labels)
    if isinstance(images, np.ndarray):
        return Held(torch.from_numpy(images), truth, settings.image_size, normalisation)
    from fastmpl.data.streaming.encoded_pipeline import machine  # here, because others need no DALI
    from fastmpl.data.streaming.streamed import Streamed

    assert normalisation is not None
    where = machine(settings, device, threads)
    return Streamed(images, truth, settings.image_size, settings.centre_crop, normalisation, where)
