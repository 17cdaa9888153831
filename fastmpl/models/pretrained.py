"""Puts trained weights into a network that is built here, and says which tensors it could not use.

The classifier is replaced unless its rows are known to be the network's classes: a file of weights does not name classes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmpl.models.errors import ModelError

SHOWN = 4  # names of tensors in a sentence


class Weights(NamedTuple):
    """Trained tensors by name. `tensors` is None for timm's own weights, which timm finds by the network's name."""

    source: str  # as the user named it
    tensors: Mapping[str, Tensor] | None
    head_order: Tensor | None = None  # [K] rows of the classifier for the network's classes; None: it is replaced


class Loaded(NamedTuple):
    """Which tensors of a network came from the weights."""

    tensors: int
    of: int
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def describe(self, source: str) -> str:
        """Such as `loaded 150 of 152 tensors of w.safetensors; new: head.weight, head.bias`."""
        text = f"loaded {self.tensors} of {self.of} tensors from {source}"
        if self.new:
            text += f"; new: {shorten(self.new)}"
        if self.unused:
            text += f"; not used from it: {shorten(self.unused)}"
        return text


def shorten(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def classifier_of(network: nn.Module) -> str:
    """The name of the layer whose outputs are the classes: the last linear one."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else ""


def select_head(tensors: Mapping[str, Tensor], classifier: str, order: Tensor | None) -> dict[str, Tensor]:
    """The tensors with the classifier's rows in the given order, or without the classifier."""
    head = {f"{classifier}.weight", f"{classifier}.bias"}
    if order is None:
        return {name: value for name, value in tensors.items() if name not in head}
    return {name: value[order] if name in head else value for name, value in tensors.items()}


def check_loaded(network: nn.Module, given: set[str], classifier: str, source: str) -> Loaded:
    """What became of the tensors `given`. Raises ModelError if one other than the classifier's is missing."""
    wanted = tuple(network.state_dict())
    new = tuple(name for name in wanted if name not in given and not name.endswith("num_batches_tracked"))
    lacking = tuple(name for name in new if name not in (f"{classifier}.weight", f"{classifier}.bias"))
    if lacking:
        raise ModelError(
            f'pretrained = "{source}" lacks {len(lacking)} of {len(wanted)} tensors of this network, such as '
            f"{shorten(lacking)}: it is of another network. Set model to the network that the weights are of."
        )
    return Loaded(len(wanted) - len(new), len(wanted), new, tuple(sorted(given - set(wanted))))


def load_into(network: nn.Module, weights: Weights) -> Loaded:
    """Loads tensors whose names are the network's own. Raises ModelError if they are of another network."""
    if weights.tensors is None:
        raise ModelError(
            f'pretrained = "{weights.source}" is for networks of timm: name a file or a run for a network of our own.'
        )
    classifier = classifier_of(network)
    tensors = select_head(weights.tensors, classifier, weights.head_order)
    loaded = check_loaded(network, set(tensors), classifier, weights.source)
    own = network.state_dict()
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            raise ModelError(
                f'pretrained = "{weights.source}" has {name} of shape {list(tensors[name].shape)}, and this network has '
                f"{list(own[name].shape)}: set model, width, depth and data.channels to those of the weights."
            )
    network.load_state_dict(tensors, strict=False)
    return loaded


@contextmanager
def record_load() -> Iterator[Callable[[], set[str]]]:
    """Notes the names of the tensors that a library hands to `nn.Module.load_state_dict` within the block.

    timm filters, renames and resizes weights on its way to that call and does not return what became of them.
    """
    seen: list[set[str]] = []
    original = nn.Module.load_state_dict

    def load_state_dict(self: nn.Module, state_dict: Mapping[str, Any], *rest: Any, **options: Any) -> Any:
        seen.append(set(state_dict))
        return original(self, state_dict, *rest, **options)

    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    try:
        yield lambda: seen[-1] if seen else set()
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def require_finite(tensors: Mapping[str, Tensor], asked: str) -> None:
    """Raises ModelError that names the first tensor with a value that is not finite; `asked` is the key and its value."""
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{asked} has values in {name} that are not finite: the file is damaged.")
