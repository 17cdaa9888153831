"""The network of a finished run, for evaluation and as a teacher that does not learn."""

from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from fastmpl.assemble import network
from fastmpl.config import Config, load
from fastmpl.errors import ConfigError

WEIGHTS = "student.safetensors"


def save_network(folder: Path, module: nn.Module, *, classes: tuple[str, ...], image_shape: tuple[int, ...]) -> Path:
    """Writes the weights; their metadata says what they classify, and how large the images are."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    facts = {"classes": "\n".join(classes), "image_shape": " ".join(map(str, image_shape))}
    draft = folder / f"{WEIGHTS}.tmp"
    draft.write_bytes(safetensors.torch.save(tensors, facts))
    return draft.replace(folder / WEIGHTS)


def load_network(folder: Path, *, classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """The student of the run in `folder`. Raises ConfigError where there is none, or it classifies something else."""
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} has no {WEIGHTS}: name the folder of a finished run, or train it first.")
    config: Config = load(folder / "config.toml")
    with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
        facts = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    held_classes = len(facts["classes"].split("\n"))
    shape = tuple(map(int, facts["image_shape"].split()))
    if held_classes != classes or shape != image_shape:
        raise ConfigError(
            f"{folder} classifies images {shape} into {held_classes} classes; this run has {image_shape} and {classes}."
        )
    module = network(config.student, classes=classes, image_shape=image_shape, seed=0)
    module.load_state_dict(state)
    return module


def fixed_teacher(model: str, *, classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """A teacher that does not learn: the student of a run, or a pretrained network of timm with these classes."""
    if not model.startswith("timm:"):
        return load_network(Path(model), classes=classes, image_shape=image_shape)
    import timm

    try:
        module: nn.Module = timm.create_model(model.removeprefix("timm:"), pretrained=True)
    except (RuntimeError, OSError) as error:
        raise ConfigError(f'teacher.model = "{model}" cannot be loaded: {error}.') from error
    held_classes = getattr(module, "num_classes", None)
    if held_classes != classes:
        raise ConfigError(f'teacher.model = "{model}" has {held_classes} classes; the data has {classes}.')
    return module
