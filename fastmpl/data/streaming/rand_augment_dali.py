"""Applies RandAugment's operations in DALI to uint8 HWC images, with the numbers of `rand_augment`.

Each image takes one branch of a tree of conditions. DALI's fast operations on a CPU take their numbers as arguments, and
an argument cannot be computed on a GPU. The two operations that measure the image first (contrast, autocontrast) are
therefore written twice. Warps read the nearest pixel, as published; on a CPU that takes a ninth of the time of linear
interpolation.
"""

import numpy as np

from fastmpl.data.dali import Node, fn, types
from fastmpl.data.streaming.rand_augment import FILL, Kind

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_BLUR = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_SAME = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)


def _contrast(image: Node, factor: Node, gpu: bool) -> Node:
    """Moves each value away from, or towards, the mean grey of the image."""
    mean = fn.reductions.mean(image, axis_names="HW", keep_dims=gpu)
    if gpu:
        centre = fn.reductions.sum(mean * types.Constant(_GREY), axis_names="C", keep_dims=True)
        return fn.cast_like(centre + (image - centre) * factor.gpu(), image)
    grey = fn.reductions.sum(mean * types.Constant(_GREY), axes=[0])
    return fn.brightness_contrast(image, contrast=factor, contrast_center=grey)


def _autocontrast(image: Node, gpu: bool) -> Node:
    """Stretches each channel to 0..255; a channel of a single value does not change."""
    low = fn.reductions.min(image, axis_names="HW", keep_dims=gpu)
    high = fn.reductions.max(image, axis_names="HW", keep_dims=gpu)
    flat = fn.cast(high == low, dtype=types.FLOAT)
    offset = low * (1.0 - flat)
    width = (high - low) * (1.0 - flat) + 255.0 * flat
    if gpu:
        return fn.cast_like((image - offset) * (255.0 / width), image)
    return fn.crop_mirror_normalize(image, mean=offset, std=width / 255.0, dtype=types.UINT8, output_layout="HWC")


def _sharpness(image: Node, factor: Node, gpu: bool) -> Node:
    kernel = types.Constant(_BLUR) + factor * types.Constant(_SAME - _BLUR)
    return fn.filter(image, kernel.gpu() if gpu else kernel)


def _solarize(image: Node, threshold: Node, gpu: bool) -> Node:
    """Inverts values from the threshold on: of a byte all bits are flipped."""
    above = image >= (threshold.gpu() if gpu else threshold)
    return image ^ (fn.cast(above, dtype=types.UINT8) * types.Constant(np.uint8(255)))


def _posterize(image: Node, mask: Node, gpu: bool) -> Node:
    bits = fn.cast(mask, dtype=types.UINT8)
    return image & (bits.gpu() if gpu else bits)


def _warp(image: Node, matrix: Node) -> Node:
    return fn.warp_affine(image, matrix=matrix, interp_type=types.INTERP_NN, fill_value=FILL)


def apply_layer(image: Node, kind: Node, matrix: Node, value: Node, *, gpu: bool) -> Node:
    """Applies one operation to each image. The pipeline must be defined with enable_conditionals."""
    if kind < Kind.CONTRAST.value:
        if kind < Kind.BRIGHTNESS.value:
            if kind == Kind.WARP.value:
                image = _warp(image, matrix)
        elif kind == Kind.BRIGHTNESS.value:
            image = fn.brightness(image, brightness=value)
        else:
            image = fn.saturation(image, saturation=value)
    elif kind < Kind.SOLARIZE.value:
        if kind == Kind.CONTRAST.value:
            image = _contrast(image, value, gpu)
        elif kind == Kind.SHARPNESS.value:
            image = _sharpness(image, value, gpu)
        else:
            image = _posterize(image, value, gpu)
    elif kind == Kind.SOLARIZE.value:
        image = _solarize(image, value, gpu)
    elif kind == Kind.AUTOCONTRAST.value:
        image = _autocontrast(image, gpu)
    else:
        image = fn.equalize(image)
    return image
