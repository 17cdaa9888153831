"""A forward-mode pass for which no rank holds the whole network.

The pass runs through a twin of the network that has neither storage nor hooks. Before a layer is called, its
parameters and their tangents are made of the ranks' pieces; after it they are dropped. A layer here is a module that
owns parameters directly; one that uses those of a module which it does not call cannot be run this way.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Gather = Callable[[list[str]], Mapping[str, Tensor]]  # names of parameters -> the parameters, duals where they move


@contextmanager
def layer_by_layer(twin: nn.Module, gather: Gather) -> Iterator[None]:
    """Calls of `twin` within the block take each layer's parameters from `gather`, which all ranks call alike."""
    layers = {name: module for name, module in twin.named_modules() if any(True for _ in module.parameters(False))}
    hooks = []
    for name, layer in layers.items():
        hooks.append(layer.register_forward_pre_hook(_make_gather_hook(name, gather)))
        hooks.append(layer.register_forward_hook(_left))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            _drop(layer)


def _make_gather_hook(name: str, gather: Gather) -> Callable[[nn.Module, Any], None]:
    def hook(layer: nn.Module, inputs: Any) -> None:
        own = {f"{name}.{local}" if name else local: local for local, _ in layer.named_parameters(recurse=False)}
        for path, value in gather(list(own)).items():
            layer.__dict__[own[path]] = value  # found before the registered parameter

    return hook


def _left(layer: nn.Module, inputs: Any, output: Any) -> None:
    _drop(layer)


def _drop(layer: nn.Module) -> None:
    for local, _ in layer.named_parameters(recurse=False):
        layer.__dict__.pop(local, None)
