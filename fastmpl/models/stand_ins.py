"""Calls a network on tensors of one's own: `torch.func.functional_call`, for networks that use a layer twice as well.

torch puts a stand-in into a layer once for each name of the layer, and takes the last one it found for the layer's own. A
layer with two names would keep the stand-in, and the network would train a tensor that it no longer uses. Here each place
of a tensor is filled once, whatever its names.
"""

from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], *inputs: Any) -> Any:
    """The result of `module` on `inputs` with `tensors`, by name, in the place of its own, wherever these are used.

    A name may be any of a tensor's. Raises ValueError where two names of one tensor are given different values.
    """
    return functional_call(module, fill_places(module, tensors), inputs, tie_weights=False)


def fill_places(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with a name for each place: a tensor that several layers hold has several, a layer's second name none."""
    places: dict[int, list[str]] = defaultdict(list)
    own: dict[str, Tensor] = {}
    for prefix, layer in module.named_modules():  # each layer once
        for local, tensor in chain(layer._parameters.items(), layer._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{local}" if prefix else local
                own[name] = tensor
                places[id(tensor)].append(name)
    filled: dict[str, Tensor] = {}
    for name, value in tensors.items():
        tensor = own.get(name)
        if tensor is None:
            tensor = _find(module, name)
        for place in [name] if tensor is None else places[id(tensor)]:
            if filled.setdefault(place, value) is not value:
                raise ValueError(f"{name} and another name of the same tensor are given different values.")
    return filled


def _find(module: nn.Module, name: str) -> Tensor | None:
    """The tensor of a layer's second name; None for a name that has none."""
    prefix, _, local = name.rpartition(".")
    layer = module.get_submodule(prefix)
    found = layer._parameters.get(local)
    return layer._buffers.get(local) if found is None else found
