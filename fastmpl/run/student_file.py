"""student.safetensors: the student of a finished run, with its classes, image size and normalisation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor, nn

from fastmpl.config import Config, load
from fastmpl.data.normalise import Normalisation
from fastmpl.errors import ConfigError
from fastmpl.models import build_network

WEIGHTS = "student.safetensors"


class Classifier(NamedTuple):
    """A run's student and how to use it. `normalisation` is None for a classifier of points."""

    module: nn.Module
    config: Config
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    normalisation: Normalisation | None


def save_network(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    classes: tuple[str, ...],
    image_shape: tuple[int, ...],
    normalisation: Normalisation | None,
) -> Path:
    """Writes the weights; the metadata holds the classes, the image shape and the normalisation."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    facts = {"class_names": json.dumps(classes), "image_shape": " ".join(map(str, image_shape))}
    if normalisation is not None:
        facts |= {name: " ".join(map(repr, values)) for name, values in normalisation._asdict().items()}
    draft = folder / f"{WEIGHTS}.tmp"
    draft.write_bytes(safetensors.torch.save(tensors, facts))
    return draft.replace(folder / WEIGHTS)


def load_classifier(folder: Path) -> Classifier:
    """The student of the run in `folder`, on the CPU, in evaluation mode. Raises ConfigError if there is none."""
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} has no {WEIGHTS}: give the folder of a finished run, or train it first.")
    config: Config = load(folder / "config.toml")
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            facts = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        classes = _class_names(facts)
        image_shape = tuple(map(int, facts["image_shape"].split()))
        mean, std = (tuple(map(float, facts.get(name, "").split())) for name in Normalisation._fields)
        module = build_network(config.student, classes=len(classes), image_shape=image_shape, seed=0)
        module.load_state_dict(state)
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{folder / WEIGHTS} is damaged or belongs to another run: `fastmpl train {folder / 'config.toml'}` writes it "
            "again from the last checkpoint."
        ) from error
    return Classifier(module.eval(), config, classes, image_shape, Normalisation(mean, std) if mean else None)


def _class_names(facts: Mapping[str, str]) -> tuple[str, ...]:
    """The classes in the metadata: a JSON list, or lines in a file of version 0.1.0."""
    names = json.loads(facts["class_names"]) if "class_names" in facts else facts["classes"].split("\n")
    return tuple(map(str, names))


def load_network(folder: Path, *, classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """The student of the run in `folder`, for experiments on the very data of that run.

    Raises ConfigError if there is none or its shapes differ from those asked for.
    """
    held = load_classifier(folder)
    if len(held.classes) != classes or held.image_shape != image_shape:
        raise ConfigError(
            f"{folder} classifies images {held.image_shape} into {len(held.classes)} classes; "
            f"this run has {image_shape} and {classes}."
        )
    return held.module
