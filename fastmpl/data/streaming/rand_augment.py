"""RandAugment (Cubuk et al. 2020) for pictures of any size: chooses the operation of each image, and its numbers.

The fourteen operations and their largest magnitudes are those of the paper. They equal torchvision's with two exceptions:
the largest translation is 100 pixels of 224, and what comes into view is grey. `rand_augment_dali` moves the pixels, and
docs/data.md compares each operation with torchvision's. Images in memory use DALI's own suite.
"""

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS: Final = 30  # magnitudes are 0 to 30
SHEAR, ROTATION, ENHANCE, TRANSLATION = 0.3, 30.0, 0.9, 100 / 224  # the largest
FILL: Final = 128.0  # of what a shear, shift or turn brings into view, as published


class Operation(IntEnum):
    """The operations in torchvision's order. The numbers are drawn: never renumber one."""

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTOCONTRAST = 12
    EQUALIZE = 13


class Kind(IntEnum):
    """How pixels are computed. Five operations are one kind: they read pixels at affine coordinates."""

    IDENTITY = 0
    WARP = 1
    BRIGHTNESS = 2
    COLOR = 3
    CONTRAST = 4
    SHARPNESS = 5
    POSTERIZE = 6
    SOLARIZE = 7
    AUTOCONTRAST = 8
    EQUALIZE = 9


class Layer(NamedTuple):
    """One operation of each of n images.

    matrix [n, 2, 3]: of a warp, from a pixel of the result (x, y, 1) to where it is read. value [n]: the factor of
    brightness, color, contrast and sharpness (1 changes nothing), the mask of posterize, the threshold of solarize.
    """

    kind: NDArray[np.int32]
    matrix: NDArray[np.float32]
    value: NDArray[np.float32]


_KINDS: Final = np.array([0, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9], np.int32)


def _matrices(operation: NDArray[np.int32], signed: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """`signed`: the magnitude as a share of the largest, with its sign."""
    matrix = np.zeros((len(operation), 2, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1.0
    shear, shift = SHEAR * signed, np.round(TRANSLATION * size * signed)
    matrix[:, 0, 1] = np.where(operation == Operation.SHEAR_X, shear, 0.0)
    matrix[:, 1, 0] = np.where(operation == Operation.SHEAR_Y, shear, 0.0)
    matrix[:, 0, 2] = np.where(operation == Operation.TRANSLATE_X, -shift, 0.0)
    matrix[:, 1, 2] = np.where(operation == Operation.TRANSLATE_Y, -shift, 0.0)
    turned = operation == Operation.ROTATE
    angle = np.radians(ROTATION * signed[turned])
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    matrix[turned, :, :2] = rotation
    matrix[turned, :, 2] = (size / 2) * (1.0 - rotation.sum(2))  # about the middle
    return matrix.astype(np.float32)


def layer(operation: NDArray[np.int32], sign: NDArray[np.int32], magnitude: int, size: int) -> Layer:
    """The layer of operations [n] with signs [n] (0: plus, 1: minus) at a magnitude, for images of `size` pixels."""
    share = magnitude / BINS
    signed = np.where(sign == 1, -share, share).astype(np.float64)
    value = 1.0 + ENHANCE * signed
    bits = 8 - round(4 * share)
    value = np.where(operation == Operation.POSTERIZE, 256 - 2 ** (8 - bits), value)
    value = np.where(operation == Operation.SOLARIZE, 255.0 * (1.0 - share), value)
    return Layer(_KINDS[operation], _matrices(operation, signed, size), value.astype(np.float32))


def layers(u: NDArray[np.float32], count: int, magnitude: int, size: int) -> list[Layer]:
    """`count` layers from uniform numbers u [n, 2 count]: operations first, then signs."""
    operation = np.floor(u[:, :count].astype(np.float64) * len(Operation)).astype(np.int32)
    sign = (u[:, count : 2 * count] < 0.5).astype(np.int32)
    return [layer(operation[:, k], sign[:, k], magnitude, size) for k in range(count)]
