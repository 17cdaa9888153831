"""The layers of a network from the image to the classes: which are frozen, and the rate that each learns at.

A layer is what timm's layer-wise decay calls one: the stem, then each block, then the classifier. In networks that timm
does not know, each module of the network is one, and of a plain container each module inside.

With theta_l the parameters of layer l = 0, ..., L and eta the scheduled rate, layer l learns at eta decay^(L - l), and the
classifier at `head_lr` times that (Howard and Ruder 2018; Bao et al., "BEiT", 2022, in this form).
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from fastmpl.config import NetworkConfig
from fastmpl.errors import ConfigError
from fastmpl.models.pretrained import classifier_of


class LayerRate(NamedTuple):
    """The rate of a parameter: a share of the scheduled one, which may be 0 for the first steps."""

    factor: float = 1.0
    waits: bool = False  # at rate 0 for the first `freeze_steps` steps


def number_layers(module: nn.Module) -> dict[str, int]:
    """The layer of each parameter, 0 for the stem; the network's own parameters belong to the stem."""
    get_matcher: Any = getattr(module, "group_matcher", None)
    if get_matcher is not None:
        from timm.models import group_parameters  # with all of timm: a network that has it is timm's

        found: dict[str, int] = group_parameters(module, get_matcher(coarse=False), reverse=True)
        return found
    containers = {name for name, child in module.named_children() if isinstance(child, nn.Sequential | nn.ModuleList)}

    def layer_of(parameter: str) -> tuple[str, ...]:
        first, *rest = parameter.split(".")
        return (first, rest[0]) if first in containers else (first,) if rest else ()

    layers = {name: layer_of(name) for name, _ in module.named_parameters()}
    order = {layer: number for number, layer in enumerate(dict.fromkeys(filter(None, layers.values())))}
    return {name: order.get(layer, 0) for name, layer in layers.items()}


def classifier_names(module: nn.Module) -> set[str]:
    """Names of the parameters of the layer whose outputs are the classes; of both for a network with two."""
    get_classifier: Any = getattr(module, "get_classifier", lambda: None)
    found = get_classifier()
    heads = [head for head in (found if isinstance(found, tuple) else (found,)) if isinstance(head, nn.Module)]
    owned = {id(p) for head in heads for p in head.parameters()}
    names = {name for name, p in module.named_parameters() if id(p) in owned}
    last = classifier_of(module)
    return names or {name for name, _ in module.named_parameters() if name.startswith(f"{last}.")}


def frozen_names(module: nn.Module, count: int) -> set[str]:
    """Names of the parameters of the first `count` layers; of all but the classifier's for -1.

    Raises ConfigError where no parameter would be left to learn.
    """
    if count == -1:
        return {name for name, _ in module.named_parameters()} - classifier_names(module)
    layers = number_layers(module)
    last = max(layers.values())
    if count > last:
        raise ConfigError(
            f"freeze = {count}: this network has {last + 1} layers, of which the classifier is the last. "
            f"Use at most {last}, or -1 for all but the classifier."
        )
    return {name for name, layer in layers.items() if layer < count}


def freeze_layers(module: nn.Module, config: NetworkConfig) -> list[nn.Module]:
    """Takes the gradient from the parameters that never learn; returns the modules that hold no others, outermost first.

    Such a module is a fixed function of an image: it stays in evaluation mode (`set_training`), with the running
    statistics that it started with and without dropout. Raises ConfigError where nothing is left that learns.
    """
    freezes = config.freeze > 0 and config.freeze_steps == 0
    names = frozen_names(module, config.freeze) if freezes else set()
    for name, parameter in module.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError("the network has no parameter that learns: all are frozen, or there are none.")
    return _list_frozen(module) if freezes else []


def _list_frozen(module: nn.Module) -> list[nn.Module]:
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        return [module]
    return [found for child in module.children() for found in _list_frozen(child)]


def set_training(module: nn.Module, frozen: list[nn.Module]) -> nn.Module:
    """Training mode, but for what is frozen."""
    module.train()
    for part in frozen:
        part.eval()
    return module


def learning_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters: what an average of the network has to keep."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def layer_rates(module: nn.Module, config: NetworkConfig) -> dict[str, LayerRate]:
    """The rate of each parameter that learns."""
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    waiting = frozen_names(module, config.freeze) if config.freeze and config.freeze_steps else set()
    if config.layer_decay == 1 and config.head_lr == 1:
        return {name: LayerRate(1.0, name in waiting) for name in names}
    layers, classifier = number_layers(module), classifier_names(module)
    last = max(layers.values())

    def factor_of(name: str) -> float:
        decayed: float = config.layer_decay ** (last - layers[name])
        return decayed * config.head_lr if name in classifier else decayed

    return {name: LayerRate(factor_of(name), name in waiting) for name in names}
