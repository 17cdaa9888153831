"""Conditions on labels and networks that are known before the first step; `fastmpl check` and training both ask them."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmpl.config import Config, NetworkConfig, feeds_back, learns_unlabelled
from fastmpl.errors import ConfigError
from fastmpl.learners.forward_mode import find_missing_forward_mode
from fastmpl.learners.layers import frozen_names
from fastmpl.learners.plain import PlainLearner
from fastmpl.models import build_network
from fastmpl.models.errors import ModelError, name_role

SHOWN = 10  # classes that are named
SGD = ("sgd", "nesterov", "fastmpl:sgd_ema", "apex:FusedSGD")
TRANSFORMER_SGD_RATE = 0.01  # from which plain SGD is remarked upon


class _TrainedNetwork(NamedTuple):
    """A network that the method trains, and the images of its smallest pass on one rank."""

    role: str
    section: NetworkConfig
    images: int


def require_label_of_each_class(config: Config, classes: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Raises ConfigError if a class has no labelled image, unless a fixed teacher labels the images instead.

    labels: int64, the classes of the labelled images.
    """
    if config.method.name in ("distillation", "reduced_mpl") or len(labels) == 0:
        return
    absent = [name for number, name in enumerate(classes) if not (labels == number).any()]
    if not absent:
        return
    named = ", ".join(absent[:SHOWN]) + (f" and {len(absent) - SHOWN} others" if len(absent) > SHOWN else "")
    if 0 < config.data.labels < len(classes):
        raise ConfigError(
            f"data.labels = {config.data.labels} is fewer than the {len(classes)} classes, so that nothing can be learnt "
            f"of {named}. Use {len(classes)} or more, or 0 for all."
        )
    raise ConfigError(f"no labelled image is left for {named}. Lower data.validation or data.trusted, or add images.")


def require_networks(
    config: Config, *, classes: int, image_shape: tuple[int, ...], world: int = 1, every: bool = True
) -> list[str]:
    """Builds each network that trains and passes an empty batch through it, with no arithmetic; returns remarks.

    every: False skips the networks that cannot fail, fastmpl's own with two images or more a pass. Raises ModelError for
    a network that does not exist, does not take such images, or normalises over one value a channel.
    """
    remarks = []
    for trained in _trained_networks(config, world):
        plain = trained.images > 1 and trained.section.freeze == 0
        if not every and plain and not trained.section.model.startswith("timm:"):
            continue
        network = _pass_empty_batch(trained, classes, image_shape)
        _require_one_name_of_each(config, trained, network)
        remarks += _require_layers_to_learn(trained, network)
        if trained.role == "student" and _takes_tangent(config) and trained.section.model.startswith("timm:"):
            _require_forward_mode(config, trained, network, image_shape)
        if trained.section.optimiser in SGD and trained.section.lr >= TRANSFORMER_SGD_RATE and _is_transformer(network):
            remarks.append(
                f'{trained.role}.optimiser = "{trained.section.optimiser}" with lr = {trained.section.lr}: transformers '
                f'seldom learn so. "adamw" with lr = 1e-3 and weight_decay = 0.05 is a usual start.'
            )
    return remarks


def _trained_networks(config: Config, world: int) -> Iterator[_TrainedNetwork]:
    data, method = config.data, config.method.name
    batches = [data.batch_labelled, *([data.batch_unlabelled] if learns_unlabelled(config) else [])]
    images = sum(batches) if config.system.schedule == "joint" else min(batches)
    for role, section in (("student", config.student), ("teacher", config.teacher)):
        if role == "teacher" and method != "mpl":
            continue
        ranks = 1 if section.norm == "sync" else world
        yield _TrainedNetwork(role, section, max(1, images // config.system.accumulate // ranks))


def _pass_empty_batch(trained: _TrainedNetwork, classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    model = trained.section.model
    shape = " x ".join(map(str, image_shape[1:])) or f"{image_shape[0]} numbers"
    try:
        with name_role(trained.role), FakeTensorMode(), torch.no_grad():
            network = build_network(trained.section, classes=classes, image_shape=image_shape, seed=0)
            network.train()(torch.empty(trained.images, *image_shape))
    except ModelError:
        raise
    except Exception as error:  # a network of timm raises whatever its author chose
        words = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        if re.search("more than (1|one) value per channel", words):
            raise ModelError(
                f'{trained.role}.model = "{model}" normalises over one value a channel (images of {shape}, '
                f'{trained.images} a pass). Use larger batches or images, or {trained.role}.norm = "group".'
            ) from error
        raise ModelError(
            f'{trained.role}.model = "{model}" cannot be used with images of {shape} (data.image_size): {words}. '
            "Use another size or another model."
        ) from error
    _require_whole_patches(trained, network, image_shape)
    return network


def _require_layers_to_learn(trained: _TrainedNetwork, network: nn.Module) -> list[str]:
    """What is frozen of a network. Raises ModelError where nothing would be left to learn."""
    role, count = trained.role, trained.section.freeze
    if count == 0:
        return []
    try:
        frozen = frozen_names(network, count)
    except ConfigError as error:
        raise ModelError(f"{role}.{error.args[0]}") from error
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    steps = trained.section.freeze_steps
    until = f" for the first {steps:,} steps" if steps else ""
    return [
        f"{role}.freeze = {count} holds {sum(sizes[name] for name in frozen):,} of its {sum(sizes.values()):,} "
        f"parameters as they start{until}."
    ]


def _require_one_name_of_each(config: Config, trained: _TrainedNetwork, network: nn.Module) -> None:
    """Raises ModelError for a parameter with two names where shards are gathered by name: the second would stay empty."""
    first = {name for name, _ in network.named_parameters()}
    second = [name for name, _ in network.named_parameters(remove_duplicate=False) if name not in first]
    if second and config.system.engine == "zero" and config.system.zero_stage == 3:
        raise ModelError(
            f'{trained.role}.model = "{trained.section.model}" uses a layer twice ({second[0]} is its second name), which '
            "system.zero_stage = 3 cannot gather. Use zero_stage = 2."
        )


def _takes_tangent(config: Config) -> bool:
    exact = feeds_back(config) and config.feedback.kind in ("exact", "per_example")
    return exact and config.feedback.tangent == "jvp"


def _require_forward_mode(
    config: Config, trained: _TrainedNetwork, network: nn.Module, image_shape: tuple[int, ...]
) -> None:
    """Raises ModelError for a layer that the tangent of the exact feedback does not get through."""
    mode = detect_fake_mode(list(network.parameters()))
    assert mode is not None, "the network was built of fake tensors"
    with mode:
        learner = PlainLearner(network, trained.section, steps=1, depth=config.feedback.depth)
        missing = find_missing_forward_mode(learner, torch.empty(trained.images, *image_shape))
    if missing is not None:
        layer = f"layer {missing.layer} ({missing.kind})" if missing.layer else f"the network itself ({missing.kind})"
        raise ModelError(
            f'student.model = "{trained.section.model}": {layer} has no forward mode, which exact feedback needs '
            f'({missing.reason[:120]}). Set feedback.tangent = "difference", or feedback.depth to the last blocks '
            "behind that layer."
        )


def _require_whole_patches(trained: _TrainedNetwork, network: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Raises ModelError if a part of each image would lie in no patch, which timm drops without a word."""
    sizes = [getattr(module, "patch_size", None) for module in network.modules()]
    for size in (max(size) for size in sizes if isinstance(size, tuple) and size):
        side = image_shape[-1]
        if side % size:
            below, above = side // size * size, -(-side // size) * size
            raise ModelError(
                f'{trained.role}.model = "{trained.section.model}" cuts images into patches of {size} pixels, and '
                f"data.image_size = {side} is no multiple of that. Use {f'{below} or ' if below else ''}{above}."
            )


def _is_transformer(network: nn.Module) -> bool:
    names = {type(module).__name__ for module in network.modules()}
    return any("Attention" in name for name in names) and any("LayerNorm" in name for name in names)
