"""What all our DALI pipelines share: the import and its error message, the last operation, and outputs as tensors.

Pipelines run on DALI's dynamic executor: an output belongs to whoever holds it, and nothing is copied on the way out.
"""

from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from fastmpl.data.errors import DataError
from fastmpl.data.normalise import Normalisation

try:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug import rand_augment
    from nvidia.dali.auto_aug.core import select, signed_bin
except ImportError as error:
    raise DataError(
        f"Images are prepared by NVIDIA DALI, which cannot be imported ({error}): pip install nvidia-dali-cuda130 "
        "(nvidia-dali-cuda120 beside a CUDA 12 torch; both run without a GPU)."
    ) from error

Node = Any  # DALI has no types
__all__ = ["Node", "fn", "normalise", "pipeline_def", "rand_augment", "select", "signed_bin", "tensor", "types"]


def normalise(image: Node, mirror: Node, constants: Normalisation, *, channels_last: bool) -> Node:
    """Normalises uint8 HWC to float32, and flips it where `mirror` is 1; `channels_last`: torch's memory format."""
    mean, std = list(constants.mean), list(constants.std)
    layout = "HWC" if channels_last else "CHW"
    return fn.crop_mirror_normalize(image, mirror=mirror, mean=mean, std=std, dtype=types.FLOAT, output_layout=layout)


def tensor(output: Node, *, channels_last: bool) -> torch.Tensor:
    """An output of `normalise` as float32 [n, C, H, W], without a copy.

    The memory is DALI's, which writes it again when the last tensor on it is dropped: see `fastmpl.data.device_stream`.
    """
    made: torch.Tensor = from_dlpack(output.as_tensor())
    return made.permute(0, 3, 1, 2) if channels_last else made
