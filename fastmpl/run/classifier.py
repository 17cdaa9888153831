"""A network of a run, ready to classify: that of student.safetensors, or one in the newest checkpoint.

The networks that student.safetensors does not hold, and the student of a run that is not finished, are in the checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import safetensors
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fastmpl.config import Config, NetworkConfig, load, uses_tf32
from fastmpl.config.paths import suggest_run
from fastmpl.data.normalise import Normalisation
from fastmpl.errors import ConfigError, StorageError
from fastmpl.learners.arithmetic import allow_tf32, autocast
from fastmpl.learners.passes import to_float32
from fastmpl.models import build_network
from fastmpl.models.adapters import merge_adapters
from fastmpl.models.attention import set_attention
from fastmpl.models.layout import channels_last
from fastmpl.run import checkpoint
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.headline import NetworkName, default_network, describe_network
from fastmpl.run.input_constants import normalisation_of
from fastmpl.run.resuming import CHECKPOINTS
from fastmpl.run.selection import PREFIX as SELECTED
from fastmpl.run.student_file import WEIGHTS
from fastmpl.untrusted import printable
from fastmpl_kernels import dispatch

# where a checkpoint keeps the tensors of each network, those first that a run that ends there would leave
TENSORS: Final[dict[NetworkName, str]] = {
    "selected": SELECTED,
    "finetuned": "finetuned/module/",
    "average": "student/average/",
    "last": "student/module/",
    "teacher": "teacher/module/",
}


class Classifier(NamedTuple):
    """A network of a run and how to use it. `normalisation` is None for a classifier of points.

    `remark` is a sentence for the user where the run is not finished, and empty where it is. `description` says which of
    the run's networks it is, `model` what the configuration calls it.
    """

    module: nn.Module
    config: Config
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    normalisation: Normalisation | None
    remark: str = ""
    description: str = ""
    model: str = ""

    def infer(self, images: Float[Tensor, "N *image"]) -> Float[Tensor, "N K"]:
        """Logits as the run's own evaluation computes them: in its precision, and with its kernels where they are here."""
        kernels = self.config.system.kernels
        device = next(self.module.parameters()).device
        with (
            torch.no_grad(),
            dispatch.use(kernels if kernels in ("reference", "native") else "auto"),
            allow_tf32(uses_tf32(self.config)),
            autocast(device, self.config.system.precision),
        ):
            return to_float32(self.module(images))


def _take(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _has(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def _require_network(folder: Path, name: NetworkName, found: Checkpoint, config: Config) -> None:
    """Raises ConfigError where the run has no network of that name."""
    if name == "teacher" and config.method.name == "reduced_mpl":
        raise ConfigError(
            f"--network teacher: the teacher of {folder} corrects stored distributions and sees no images. Leave it out."
        )
    if _has(found.tensors, TENSORS[name]):
        return
    why = {
        "selected": "none was selected on validation images",
        "finetuned": "it has no fine-tuning, or has not come to it",
        "average": "student.average = 0 keeps none",
        "teacher": f'method.name = "{config.method.name}" trains none',
    }
    there = [name for name, prefix in TENSORS.items() if _has(found.tensors, prefix)]
    raise ConfigError(f"--network {name}: {folder} has no such network ({why[name]}). It has {', '.join(there)}.")


def _build(
    section: NetworkConfig,
    config: Config,
    classes: tuple[str, ...],
    image_shape: tuple[int, ...],
    state: Mapping[str, Tensor],
) -> nn.Module:
    """The network of `section` with the tensors of `state`, which may be flat; adapters are merged."""
    state, section = merge_adapters(state), section.model_copy(update={"adapter": ""})
    module = build_network(section, classes=len(classes), image_shape=image_shape, seed=0)
    set_attention(module, config.system.attention)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    module.load_state_dict({name: value.reshape(shapes.get(name, value.shape)) for name, value in state.items()})
    return (channels_last(module) if config.system.channels_last else module).eval()


def _class_names(facts: Mapping[str, str]) -> tuple[str, ...]:
    """The classes in the metadata: a JSON list, or lines in a file of version 0.1.0."""
    names = json.loads(facts["class_names"]) if "class_names" in facts else facts["classes"].split("\n")
    return tuple(map(str, names))


def _network_in_file(folder: Path) -> str | None:
    """The name of the network in student.safetensors; None if the file cannot be read or says none."""
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            return (file.metadata() or {}).get("network")
    except (safetensors.SafetensorError, OSError):
        return None


def _load_finished(folder: Path) -> Classifier:
    config: Config = load(folder / "config.toml")
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            facts = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        classes = _class_names(facts)
        image_shape = tuple(map(int, facts["image_shape"].split()))
        mean, std = (tuple(map(float, facts.get(name, "").split())) for name in Normalisation._fields)
        module = _build(config.student, config, classes, image_shape, state)
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{folder / WEIGHTS} is damaged or belongs to another run: `fastmpl train {folder / 'config.toml'}` writes it "
            "again from the last checkpoint."
        ) from error
    # a version before selection wrote the network of the last step
    steps = config.run.steps + config.finetune.steps
    description = printable(facts.get("description", "")) or describe_network(
        default_network(config, selected=False), steps, None, config
    )
    normalisation = Normalisation(mean, std) if mean else None
    return Classifier(module, config, classes, image_shape, normalisation, "", description, config.student.model)


def _load_newest(folder: Path, network: NetworkName | None) -> Classifier:
    """A network in the newest valid checkpoint."""
    config: Config = load(folder / "config.toml")
    complaints: list[str] = []
    found = checkpoint.read_newest(folder / CHECKPOINTS, complaints.append)
    if found is None:
        raise StorageError(complaints[0])
    facts = found.facts.get("student")
    if facts is None:
        raise ConfigError(
            f"{folder} is not finished, and its checkpoint is of a version that wrote no class names: "
            f"`fastmpl train {folder / 'config.toml'}` finishes it."
        )
    there = [name for name, prefix in TENSORS.items() if _has(found.tensors, prefix)]
    name: NetworkName = network or (there[0] if there else "last")
    _require_network(folder, name, found, config)
    section = config.teacher if name == "teacher" else config.student
    weights = _take(found.tensors, TENSORS[name])
    if name == "average":  # what does not move has no average
        weights = _take(found.tensors, TENSORS["last"]) | weights
    try:
        classes, image_shape = tuple(map(str, facts["classes"])), tuple(map(int, facts["image_shape"]))
        constants = facts["normalisation"]
        normalisation = None if constants is None else Normalisation(*(tuple(map(float, part)) for part in constants))
        if name == "teacher":  # which training shows the student's images by a map
            normalisation = normalisation_of(config.teacher, image_shape[0]) or normalisation
        module = _build(section, config, classes, image_shape, weights)
        description = describe_network(name, found.step, found.facts.get("best"), config)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{folder} is not finished, and the student in its checkpoint of step {found.step} cannot be read by itself: "
            f"`fastmpl train {folder / 'config.toml'}` finishes the run."
        ) from error
    total = config.run.steps + config.finetune.steps
    remark = f"{folder} is not finished: this is its {description} (the run has {total} steps)."
    if (folder / WEIGHTS).is_file():
        remark = " ".join(complaints)
    return Classifier(module, config, classes, image_shape, normalisation, remark, description, section.model)


def load_classifier(folder: Path, network: NetworkName | None = None) -> Classifier:
    """A network of the run in `folder`, on the CPU, in evaluation mode.

    network: None for the one in student.safetensors, or, of a run that is not finished, the one that it would leave if it
    ended at its newest checkpoint. Others are read from the newest checkpoint. Raises ConfigError if it is not there.
    """
    if network is not None and network not in TENSORS:
        raise ConfigError(f"a run has no network {str(network)[:64]!r}. Its networks are {', '.join(TENSORS)}.")
    if (folder / WEIGHTS).is_file() and network in (None, _network_in_file(folder)):
        return _load_finished(folder)
    if checkpoint.steps(folder / CHECKPOINTS):
        return _load_newest(folder, network)
    if network is None:
        raise ConfigError(
            f"{folder} has no {WEIGHTS} and no checkpoint: give the folder of a run, or train it first."
            f"{suggest_run(folder)}"
        )
    raise ConfigError(
        f"--network {network} is read from the newest checkpoint in {folder / CHECKPOINTS}, and there is none. Leave the "
        f"option out to use {WEIGHTS}."
    )


def load_network(
    folder: Path, *, classes: int, image_shape: tuple[int, ...], network: NetworkName | None = None
) -> nn.Module:
    """A network of the run in `folder`, as `load_classifier`, for experiments on the very data of that run.

    Raises ConfigError if there is none or its shapes differ from those asked for.
    """
    held = load_classifier(folder, network)
    if len(held.classes) != classes or held.image_shape != image_shape:
        raise ConfigError(
            f"{folder} classifies images {held.image_shape} into {len(held.classes)} classes; "
            f"this run has {image_shape} and {classes}."
        )
    return held.module
