"""Turns bytes into a network's input: its channels (3, or 1 of grey images), its size, mean 0 and deviation 1.

The constants are measured on all training images of the source, without their labels, so that they are the same for
every split and seed. This is the plain form, for evaluation; the training pipeline does the same inside DALI.
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel of the network's input (three, or one), in units of bytes (0 to 255)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET: Final = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # as pretrained networks expect


def measure(images: NDArray[np.uint8], channels: int = 3) -> Normalisation:
    """The exact mean and deviation of the pixels of `images` [N, H, W, 3 or 1], by a histogram of bytes.

    `channels` of the network's input: 3, or 1 where the images are grey.
    """
    value = np.arange(256, dtype=np.float64)
    means, stds = [], []
    for channel in range(images.shape[3]):
        parts = (
            images[first : first + 1000, ..., channel] for first in range(0, len(images), 1000)
        )  # bounds the memory
        share = sum(np.bincount(part.ravel(), minlength=256) for part in parts) / images[..., channel].size
        mean = float(share @ value)
        means.append(mean)
        stds.append(max(float(np.sqrt(share @ (value - mean) ** 2)), 1.0))  # images of one colour have deviation 0
    repeat = channels // images.shape[3]
    return Normalisation(tuple(means * repeat), tuple(stds * repeat))


def centre(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The middle of `images` [N, H, W, 3], `size` pixels square."""
    y, x = (round((side - size) / 2) for side in images.shape[1:3])
    return images[:, y : y + size, x : x + size]


def centre_view(
    images: NDArray[np.uint8] | UInt8[Tensor, "N H W C"],
    size: int,
    constants: Normalisation,
    interpolation: str = "bilinear",
) -> Float[Tensor, "N C size size"]:
    """`images` [N, H, W, 3 or 1] as they are evaluated: resized whole, neither shifted nor flipped.

    C is the number of channels in `constants`; with one channel, a colour picture is replaced by its luminance.
    interpolation: "bilinear" or "bicubic".
    """
    tensor = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    if len(constants.mean) == 1 and tensor.shape[1] == 3:
        tensor = (tensor * torch.tensor(LUMINANCE, device=tensor.device)[:, None, None]).sum(1, keepdim=True).round()
    if tensor.shape[-2:] != (size, size):
        tensor = torch.nn.functional.interpolate(tensor, (size, size), mode=interpolation, antialias=True)
        tensor = tensor.round().clamp(0, 255)  # bicubic weights may be negative
    mean, std = (torch.tensor(c, device=tensor.device)[:, None, None] for c in constants)
    return (tensor.expand(-1, len(constants.mean), -1, -1) - mean) / std
