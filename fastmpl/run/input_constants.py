"""The constants that a network's inputs are normalised with, as the configuration has them."""

from typing import Final

from fastmpl.config import NetworkConfig
from fastmpl.data.normalise import Normalisation

BYTES: Final = 255.0  # the configuration has constants of pixels in [0, 1]
UNSET: Final = (0.0, 0.0, 0.0)


def normalisation_of(section: NetworkConfig, channels: int) -> Normalisation | None:
    """The constants of a network, of bytes; None where the configuration leaves them open.

    channels: 3, or 1 for grey images, which have the mean of the three constants.
    """
    if section.std == UNSET:
        return None
    mean, std = (tuple(BYTES * value for value in part) for part in (section.mean, section.std))
    return Normalisation(mean, std) if channels == 3 else Normalisation((sum(mean) / 3,), (sum(std) / 3,))
