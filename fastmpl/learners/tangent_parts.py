"""The forward-mode pass in parts of its images, so that its temporaries are bounded.

The math form of attention has scores of N x N tokens, of which a forward-mode pass holds several at once, and their
tangents. Where no layer mixes images (batch norm does), a pass over a part of them gives the rows of the whole pass.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastmpl.models.attention import use_math_attention
from fastmpl.models.stand_ins import call_with
from fastmpl.models.stochastic import active_dropouts, number_images_from

BOUND: Final = 2**30  # bytes of the temporaries of one part
# Tensors that a forward-mode pass holds at its peak, in units of the largest result of a plain pass: 6.5 to 8.6 were
# counted for ViT, Swin, ConvNeXt, XCiT and MaxViT (tests/learners/test_tangent_parts.py holds the bound itself).
HELD_AT_ONCE: Final = 10
MANY: Final = 16  # images of a pass in which what grows with them is larger than what does not


class _LargestResult(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operator returns, views left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Read by torch: whether to import its compiler, over a second, in order to be left out by it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in () if func.is_view else tree_iter(out):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return out


def mixes_images(module: nn.Module) -> bool:
    """Whether a layer normalises by statistics of the batch, so that an image's logits depend on the others."""
    return any("running_var" in layer._buffers for layer in module.modules())


def images_at_once(module: nn.Module, image_shape: tuple[int, ...], bound: int = BOUND) -> int:
    """The number of images of one part of `module`'s forward-mode pass; 0: the pass cannot be in parts.

    The largest number for which HELD_AT_ONCE tensors of the size of its largest result take at most `bound` bytes, and
    at least 1. Nothing is timed or computed: the network runs twice on the `meta` device, in the math form of attention.
    """
    if mixes_images(module):
        return 0
    (_, rows_of_one), (largest, rows_of_many) = (_pass(module, image_shape, n) for n in (1, MANY))
    if [MANY * rows for rows in rows_of_one] != rows_of_many:
        return 0  # a dropout whose rows are not images: a part could not tell which of them it has
    return max(1, bound * MANY // (HELD_AT_ONCE * max(1, largest)))


def _pass(module: nn.Module, image_shape: tuple[int, ...], images: int) -> tuple[int, list[int]]:
    """Bytes of the largest result of a pass, and the rows that each active dropout sees."""
    rows: list[int] = []

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        rows.append(len(inputs[0]))

    hooks = [layer.register_forward_pre_hook(note) for layer in active_dropouts(module)]
    try:
        with unset_fake_temporarily(), use_math_attention(module), torch.no_grad():
            tensors = [*module.named_parameters(), *module.named_buffers()]
            stand_ins = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors}
            inputs = torch.empty(images, *image_shape, device="meta")
            with _LargestResult() as largest:
                call_with(module, stand_ins, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return largest.bytes, rows


def call_in_parts(
    module: nn.Module, images: Float[Tensor, "N *image"], most: int, call: Callable[[Tensor], Float[Tensor, "n K"]]
) -> Float[Tensor, "N K"]:
    """`call` of the images in equal parts of at most `most`, its rows in their order; one call for 0.

    Dropout of `module` draws for each image what it would draw in one call.
    """
    parts = math.ceil(len(images) / most) if most else 1
    if parts == 1:
        return call(images)
    rows, first = [], 0
    for part in images.tensor_split(parts):
        with number_images_from(module, first, len(part)):
            rows.append(call(part))
        first += len(part)
    return torch.cat(rows)
