"""Dropout whose draw is a pure function of a key, so that passes which are compared can see the same one.

torch's dropout takes its draw from a generator: the pass that labels and the later pass that is differentiated, the
network before and after an update, a value and its tangent would each see another network. Here a mask is a function of
(draw, layer, example, unit) alone: set the same draw, see the same network, on a CPU, on a GPU, in a captured graph and
under recomputation. The mask is a constant factor, so backward and forward mode need no rule of their own.

The draw is a 0-D int64 buffer of each layer, on its device, the same in all of a network and not in its state dict.
(One tensor for all would not stay one under `.to`, nor a shared module whole under `functional_call`.) Whoever runs a
step writes it (`set_draw`); examples are numbered by their row in the batch, so two micro-batches, or two ranks,
need two draws. A pass over a part of a batch repeats the draws of the whole (`number_images_from`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fastmpl.models.errors import ModelError
from fastmpl_kernels.keyed import combine, uniform


class _Keyed(nn.Module):
    """A probability, a layer's number and the draw."""

    draw: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ModelError(f"dropout = {p}: a probability of at least 0 and below 1 is needed.")
        self.p = p
        self.layer = 0
        self.part: tuple[int, int] | None = None  # of a pass over a part of the batch: its first image, their number
        self.register_buffer("draw", torch.zeros((), dtype=torch.int64), persistent=False)

    def keep(self, rows: int, columns: int) -> Bool[Tensor, "rows columns"]:
        """The mask, bool: one unit of one example each, kept with probability 1 - p."""
        key = combine(self.draw, self.layer)
        first = 0
        if self.part is not None:  # an image may have several rows: its windows, in Swin
            image, images = self.part
            first = image * (rows // images)
        return uniform(key, torch.arange(first, first + rows, device=key.device), columns) >= self.p

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


class KeyedDropout(_Keyed):
    """Dropout (Srivastava et al. 2014): units are zeroed with probability p and the rest scaled by 1 / (1 - p).

    With `channels`, whole channels of [N, C, *] (as nn.Dropout2d).
    """

    def __init__(self, p: float, channels: bool = False) -> None:
        super().__init__(p)
        self.channels = channels

    def forward(self, x: Float[Tensor, "N *units"]) -> Float[Tensor, "N *units"]:
        if not self.training or self.p == 0.0:
            return x
        units = x.shape[1:2] if self.channels else x.shape[1:]
        mask = self.keep(x.shape[0], units.numel()).view(x.shape[0], *units, *(1,) * (x.ndim - 1 - len(units)))
        return x * (1.0 / (1.0 - self.p)) * mask  # a bool factor: backward keeps one byte a unit


class KeyedDropPath(_Keyed):
    """Stochastic depth (Huang et al. 2016): a residual branch is dropped for whole examples."""

    def __init__(self, p: float, scale_by_keep: bool = True) -> None:
        super().__init__(p)
        self.scale = 1.0 / (1.0 - p) if scale_by_keep else 1.0

    def forward(self, x: Float[Tensor, "N *units"]) -> Float[Tensor, "N *units"]:
        if not self.training or self.p == 0.0:
            return x
        return x * self.scale * self.keep(x.shape[0], 1).view(x.shape[0], *(1,) * (x.ndim - 1))


def _make_keyed(module: nn.Module) -> _Keyed | None:
    """The keyed layer that does what this one does, or None where this is no dropout."""
    if isinstance(module, nn.Dropout):
        return KeyedDropout(module.p)
    if isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return KeyedDropout(module.p, channels=True)
    if type(module).__name__ == "DropPath":  # timm's, and the copies of it that its model files hold
        return KeyedDropPath(float(module.drop_prob or 0.0), bool(getattr(module, "scale_by_keep", True)))  # type: ignore[arg-type]
    return None


def replace_dropout(module: nn.Module) -> None:
    """Makes every dropout and stochastic depth inside `module` keyed and numbers them in order.

    Functional dropout (a call of F.dropout) is not a module and is not seen here: `other_draws` finds it.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            replacement = _make_keyed(child)
            if replacement is not None:
                replacement.train(child.training)
                setattr(parent, name, replacement)
    for number, layer in enumerate(_layers(module)):
        layer.layer = number


def _layers(module: nn.Module) -> list[_Keyed]:
    return [m for m in module.modules() if isinstance(m, _Keyed)]


def active_dropouts(module: nn.Module) -> list[nn.Module]:
    """The keyed layers of `module` that drop anything in training."""
    return [layer for layer in _layers(module) if layer.p > 0]


@contextmanager
def number_images_from(module: nn.Module, first: int, images: int) -> Iterator[None]:
    """Within the block `module` sees `images` images, which are numbers `first` and following of a larger batch.

    Its keyed layers draw for them as in a pass over that batch. A layer's rows must be whole images, in their order.
    """
    layers = _layers(module)
    for layer in layers:
        layer.part = first, images
    try:
        yield
    finally:
        for layer in layers:
            layer.part = None


def set_draw(module: nn.Module, key: Int[Tensor, ""]) -> None:
    """Sets the draw of every keyed layer in `module`, in place (no host sync; nothing where there is no such layer)."""
    write_draws(list_draws(module), key)


def list_draws(module: nn.Module) -> list[Tensor]:
    """The draws of the keyed layers in `module`, for `write_draws`: a search of all modules at every pass costs more."""
    return [layer.draw for layer in _layers(module)]


def write_draws(draws: list[Tensor], key: Int[Tensor, ""]) -> None:
    """Sets draws in place."""
    if draws:
        torch._foreach_copy_(draws, [key] * len(draws))  # one launch
