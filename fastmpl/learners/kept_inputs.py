"""The forward-mode pass takes what the pass that learned has computed: it computes tangents alone.

The student learns from images in one pass, and the tangent moves along the same images at the same parameters. Where each
convolution's result goes to a batch norm and nowhere else, a tangent needs of the first pass the norms' inputs, which its
graph saves anyway; the norm's kernel makes its output and the output's tangent from them. Of the three convolutions of a
Jacobian-vector product, y = x * w, and x * dw + dx * w, the first is left out.

The inputs stay from the backward pass to the tangent, when the graph's other half is free again: the peak of memory of a
step of a deep network stays what it was. A network says by `norms_read_convolutions` that it is of this form.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from fastmpl.learners.passes import dual
from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d


def can_keep_inputs(module: nn.Module) -> bool:
    """Whether the network is of the form, and all of its norms are fused batch norms of this rank's images alone.

    A layer that was put in a convolution's place, such as one with an adapter, is not of the form.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase | nn.GroupNorm)]
    fused = all(isinstance(norm, BatchNormAct2d) and norm.reduce is None for norm in norms)
    convolutions = [m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    plain = all(type(m) is nn.Conv2d and m.bias is None for m in convolutions)  # an adapter adds to its result
    return getattr(module, "norms_read_convolutions", False) and fused and plain


class KeptInputs:
    """The norms' inputs of the last pass of `module` that learned."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, BatchNormAct2d)]
        self._images: Tensor | None = None  # kept alive: its memory cannot become other images
        self._version = 0
        self._inputs: dict[nn.Module, Tensor] = {}

    @contextmanager
    def keep(self, images: Tensor) -> Iterator[None]:
        """A pass of the network on these images within the block leaves its norms' inputs."""
        self.forget()

        def note(norm: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            self._inputs[norm] = (output[0] if isinstance(output, tuple) else inputs[0]).detach()

        hooks = [norm.register_forward_hook(note) for norm in self.norms]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._images, self._version = images, images._version

    def are_of(self, images: Tensor) -> bool:
        """Whether the inputs of every norm are there, of a pass on these images."""
        kept = self._images
        if kept is None or len(self._inputs) < len(self.norms) or images._version != self._version:
            return False
        same_memory = kept.untyped_storage()._cdata == images.untyped_storage()._cdata
        return same_memory and _place(kept) == _place(images)

    @contextmanager
    def use(self) -> Iterator[None]:
        """A forward-mode pass on those images within the block computes tangents alone."""
        for norm in self.norms:
            norm.__dict__["forward"] = _KeptNorm(norm, self._inputs)
        try:
            with _TangentsOfConvolutions():
                yield
        finally:
            for norm in self.norms:
                del norm.__dict__["forward"]
            self.forget()

    def forget(self) -> None:
        self._images, self._inputs = None, {}


class _KeptNorm:
    """The forward of a norm that has its input already, and is given the input's tangent. It serves once."""

    takes_sums = True

    def __init__(self, norm: nn.Module, inputs: dict[nn.Module, Tensor]) -> None:
        self.norm, self.inputs = norm, inputs

    def __call__(self, input: Tensor, *, addend: Tensor | None = None) -> Any:
        tangents = [_tangent(term) for term in (input, addend) if term is not None]
        there = [t for t in tangents if t is not None]
        total = None if not there else there[0] if len(there) == 1 else there[0].add_(there[1])
        x = dual(self.inputs.pop(self.norm), total)
        y = BatchNormAct2d.forward(self.norm, x)  # type: ignore[arg-type]
        return y if addend is None else (x, y)


class _TangentsOfConvolutions(TorchFunctionMode):
    """A convolution with a tangent gives that of its result, in the place of the value too, which nobody reads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_convolve if func is torch.conv2d else func)(*args, **(kwargs or {}))


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """As torch.nn.Conv2d calls torch.conv2d."""
    assert bias is None, "a convolution before a batch norm has no bias"
    (x, dx), (w, dw) = (forward_ad.unpack_dual(value) for value in (input, weight))  # type: ignore[no-untyped-call]
    convolve: Any = torch.conv2d
    if dw is None:
        if dx is None:
            value: Tensor = convolve(x, w, None, *rest)
            return value
        tangent: Tensor = convolve(dx, w, None, *rest)
    else:
        tangent = convolve(x, dw, None, *rest)
        if dx is not None:
            tangent.add_(convolve(dx, w, None, *rest))
    return dual(tangent.detach(), tangent)


def _place(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.stride(), x.storage_offset(), x.dtype


def _tangent(value: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    return tangent
