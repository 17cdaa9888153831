"""The two forms of attention in timm's networks: one fused operator, or its products and softmax one by one.

A fused operator (Dao et al. 2022, "FlashAttention") keeps no scores of N x N tokens, for the backward pass neither, and
has no forward-mode rule. The other form, "math", has one. timm's layers choose by a flag, `fused_attn`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from fastmpl.models.stochastic import KeyedDropout

Attention = Literal["fused", "math"]


def _fused_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if getattr(layer, "fused_attn", False)]


def _drops_scores(layer: nn.Module) -> bool:
    """Whether a layer drops attention scores at random: a fused operator would draw them without a key."""
    dropout = getattr(layer, "attn_drop", None)
    share = dropout.p if isinstance(dropout, KeyedDropout) else getattr(layer, "attn_drop_p", 0.0)
    return float(share or 0.0) > 0


def unfuse_random_attention(module: nn.Module) -> None:
    """Gives the math form to layers that drop scores; call it when dropout is keyed (`replace_dropout`)."""
    for layer in _fused_layers(module):
        if _drops_scores(layer):
            layer.fused_attn = False  # type: ignore[assignment]


def set_attention(module: nn.Module, form: Attention) -> None:
    """Gives all attention of `module` the math form if `form` is "math"; otherwise leaves it as it was built."""
    if form == "math":
        for layer in _fused_layers(module):
            layer.fused_attn = False  # type: ignore[assignment]


@contextmanager
def use_math_attention(module: nn.Module) -> Iterator[None]:
    """Attention of `module` has the math form within the block."""
    layers = _fused_layers(module)
    set_attention(module, "math")
    try:
        yield
    finally:
        for layer in layers:
            layer.fused_attn = True  # type: ignore[assignment]
