"""A teacher that does not learn: the student of a run, or a pretrained network of timm, on the data of another run.

The teacher sees images with the normalisation, the channels and the size that it was trained with. Its classes are brought
into the data's order by their names. Both are done here, so that distillation, pseudo-labels and `fastmpl distill` agree.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmpl.data.classes import class_order
from fastmpl.data.normalise import LUMINANCE, Normalisation
from fastmpl.errors import ConfigError
from fastmpl.models.input_map import differ, map_inputs
from fastmpl.run.classifier import load_classifier
from fastmpl.run.headline import NetworkName

BYTES = 255.0  # timm's constants are for pixels in [0, 1]


class Target(NamedTuple):
    """The data that a teacher labels. `normalisation` is None for points."""

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    normalisation: Normalisation | None


class FixedTeacher(NamedTuple):
    """A network from the data's inputs to logits in the data's order of classes, and sentences on what was adapted."""

    module: nn.Module
    remarks: tuple[str, ...]


class AdaptedNetwork(nn.Module):
    """A network behind a resize of its inputs; its logits in another order of classes."""

    order: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        size: tuple[int, int] | None = None,
        order: Tensor | None = None,
    ) -> None:
        """size: (height, width) of the images that `network` needs; None leaves them.

        order [K]: output k is the network's output order[k]; None leaves them.
        """
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("order", order)

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()  # the loader may give bfloat16
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False)
        logits: Tensor = self.network(images)
        return logits if self.order is None else logits.index_select(-1, self.order)


def load_fixed_teacher(model: str, target: Target, network: NetworkName | None = None) -> FixedTeacher:
    """The teacher named `model`, a run's folder or "timm:NAME", for the data `target`; on the CPU, in evaluation mode.

    It sees the images at its own size and in its own channels. Raises ConfigError if it cannot be loaded, and DataError
    if its classes have other names than the data's. The same names in another order are mapped, which a remark says.

    network: of a run; None: that of its headline.
    """
    return _load_timm(model, target) if model.startswith("timm:") else _load_run(model, target, network)


def _load_run(folder: str, target: Target, network: NetworkName | None) -> FixedTeacher:
    held = load_classifier(Path(folder), network)
    if (held.normalisation is None or target.normalisation is None) and held.image_shape != target.image_shape:
        raise ConfigError(
            f"The teacher {folder} was trained on inputs of shape {held.image_shape}; this run's have shape "
            f"{target.image_shape}: name a teacher of the same kind of data."
        )
    size = _size_if_other(held.image_shape[1:], target)
    adapted = _adapt(held.module, f"The teacher {folder}", held.classes, held.normalisation, size, target)
    return adapted._replace(remarks=(*adapted.remarks, *([held.remark] if held.remark else [])))


def _load_timm(model: str, target: Target) -> FixedTeacher:
    import timm  # takes a second

    if target.normalisation is None:
        raise ConfigError(f'teacher.model = "{model}" classifies images, and the data are points.')
    try:
        module: nn.Module = timm.create_model(model.removeprefix("timm:"), pretrained=True).eval()
    except (RuntimeError, OSError) as error:
        raise ConfigError(f'teacher.model = "{model}" cannot be loaded: {error}.') from error
    expects: dict[str, Any] = getattr(module, "pretrained_cfg", {})
    channels, *size = expects.get("input_size", target.image_shape)
    held, wanted = getattr(module, "num_classes", None), len(target.classes)
    if held != wanted:
        raise ConfigError(f'teacher.model = "{model}" has {held} classes; the data has {wanted}.')
    own = None
    if "mean" in expects and "std" in expects:
        own = Normalisation(*(tuple(BYTES * value for value in expects[key]) for key in ("mean", "std")))
    if channels != target.image_shape[0] and (own is None or len(own.mean) != channels or channels not in (1, 3)):
        raise ConfigError(
            f'teacher.model = "{model}" needs images with {channels} channels: set data.channels = {channels}.'
        )
    needed = _size_if_other(tuple(size), target)
    return _adapt(module, f'The teacher "{model}"', _timm_classes(module), own, needed, target)


def _size_if_other(size: tuple[int, ...], target: Target) -> tuple[int, int] | None:
    """(height, width) that images have to be brought to; None where they have it."""
    return (size[0], size[1]) if size != target.image_shape[1:] else None


def _timm_classes(module: nn.Module) -> tuple[str, ...] | None:
    """The class names of a pretrained network of timm: those it comes with, or those of its part of ImageNet."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if names := getattr(module, "pretrained_cfg", {}).get("label_names"):
        return tuple(map(str, names))
    subset = infer_imagenet_subset(module)
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def _adapt(
    module: nn.Module,
    who: str,
    classes: tuple[str, ...] | None,
    own: Normalisation | None,
    size: tuple[int, int] | None,
    target: Target,
) -> FixedTeacher:
    """`module` for the data `target`; `who` names it in sentences. classes: None if it does not name them."""
    remarks, order = [], None
    if classes is None:
        remarks.append(f"{who} does not name its classes: they are taken in the order of the data's classes.")
    else:
        order = torch.from_numpy(class_order(classes, target.classes, who))
        if torch.equal(order, torch.arange(len(order))):
            order = None
        else:
            remarks.append(f"{who} has the data's classes in another order: its scores are mapped by class name.")
    if target.normalisation is not None and own is not None and differ(own, target.normalisation):
        if len(own.mean) != len(target.normalisation.mean):
            remarks.append(f"{who} sees the images in {'grey' if len(own.mean) == 1 else 'three equal channels'}.")
        remarks.append(f"{who} sees the images with the normalisation that it was trained with.")
        map_inputs(module, target.normalisation, own, LUMINANCE)
    if size is not None:
        remarks.append(f"{who} sees the images at its own size, {size[0]} x {size[1]} pixels.")
    adapted = AdaptedNetwork(module, size=size, order=order)
    return FixedTeacher(adapted.eval(), tuple(remarks))
