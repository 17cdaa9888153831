"""Small pictures of a network's inputs, for the eyes of a reader."""

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fastmpl.data.normalise import Normalisation

SIDE: Final = 96  # pixels, at most


def make_thumbnails(images: Float[Tensor, "n C H W"], constants: Normalisation) -> NDArray[np.uint8]:
    """uint8 [n, side, side, 3] of normalised inputs with 1 or 3 channels; side = min(H, SIDE)."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in constants)
    pixels = images.detach().float() * std + mean
    side = min(images.shape[-1], SIDE)
    if len(pixels) and pixels.shape[-1] != side:
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    bytes_ = pixels.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    return np.ascontiguousarray(bytes_.permute(0, 2, 3, 1).cpu().numpy())
