"""From a name in a config to a network. Own names in one table; everything of timm behind "timm:NAME"."""

import difflib
import math
import re
from collections.abc import Callable

import torch
from torch import nn

from fastmpl.config import NetworkConfig
from fastmpl.models.adapters import adapter_rank, add_adapters
from fastmpl.models.conv import ConvNet
from fastmpl.models.errors import ModelError
from fastmpl.models.norms import Norm
from fastmpl.models.perceptron import Perceptron
from fastmpl.models.pretrained import Weights, load_into
from fastmpl.models.stochastic import replace_dropout
from fastmpl.models.wide_resnet import WideResNet

NAMES = ("wrn_28_2", "wrn_28_8", "conv", "perceptron", "perceptron_tanh", "linear")  # and any wrn_DEPTH_FACTOR


def _own(
    model: str, classes: int, image_shape: tuple[int, ...], dropout: float, norm: Norm, width: int, depth: int
) -> nn.Module:
    if model == "perceptron":
        return Perceptron(math.prod(image_shape), width, depth, classes, dropout)
    if model == "perceptron_tanh":
        return Perceptron(math.prod(image_shape), width, depth, classes, dropout, "tanh")
    if model == "linear":
        return Perceptron(math.prod(image_shape), width, 1, classes, dropout)
    wide = re.fullmatch(r"wrn_(\d+)_(\d+)", model)
    if wide is None and model != "conv":
        near = " or ".join(map(repr, difflib.get_close_matches(model, NAMES)))
        hint = f"Did you mean {near}?" if near else f"Own names are {', '.join(NAMES)}; timm's are 'timm:NAME'."
        raise ModelError(f'model = "{model}" is not known. {hint}')
    if len(image_shape) != 3 or min(image_shape[1:]) < 4:
        raise ModelError(
            f'model = "{model}" needs images of at least 4 x 4 pixels (channels, height, width), and the data has '
            f'shape {image_shape}: use model = "perceptron".'
        )
    if wide is not None:
        return WideResNet(int(wide[1]), int(wide[2]), classes, image_shape[0], dropout, norm)
    return ConvNet(width, classes, image_shape[0], dropout, norm)


def build(
    model: str,
    *,
    classes: int,
    image_shape: tuple[int, ...],
    dropout: float,
    norm: Norm,
    width: int,
    depth: int,
    seed: int,
    weights: Weights | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> nn.Module:
    """The network of that name, on the CPU, in training mode, its parameters a pure function of `seed`.

    model: "wrn_D_k", "conv" (`width`: channels of its last layer), "perceptron" and "perceptron_tanh" (`width` units,
    `depth` linear layers, no norm), "linear" (a perceptron of one layer), or "timm:NAME".
    image_shape: (channels, height, width), or (features,) for a perceptron. weights: what the network starts from instead;
    `note` is told which tensors were loaded. Random draws of the network are keyed (`fastmpl.models.set_draw`). The global
    generators are left as they were. Raises ModelError, one sentence, for what does not exist or cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU's generator too
        if model.startswith("timm:"):
            from fastmpl.models.zoo import timm_model  # timm takes a second to import

            return timm_model(
                model.removeprefix("timm:"),
                classes=classes,
                image_shape=image_shape,
                dropout=dropout,
                norm=norm,
                weights=weights,
                note=note,
            )
        network = _own(model, classes, image_shape, dropout, norm, width, depth)
    if weights is not None:
        note(load_into(network, weights).describe(weights.source))
    replace_dropout(network)  # numbers the layers
    return network


def build_network(
    config: NetworkConfig,
    *,
    classes: int,
    image_shape: tuple[int, ...],
    seed: int,
    weights: Weights | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> nn.Module:
    """The network of a section of the configuration, with its adapter; see `build`."""
    network = build(
        config.model,
        classes=classes,
        image_shape=image_shape,
        dropout=config.dropout,
        norm=config.norm,
        width=config.width,
        depth=config.depth,
        seed=seed,
        weights=weights,
        note=note,
    )
    if rank := adapter_rank(config.adapter):
        adapted = add_adapters(network, rank, seed)
        note(f"{adapted} layers have adapters of rank {rank}; all else but the classifier is frozen")
    return network
