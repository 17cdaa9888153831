"""student.safetensors: the student of a finished run, with its classes, image size and normalisation.

A run that is not finished has a student too, in its newest checkpoint.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor, nn

from fastmpl.config import Config, load
from fastmpl.data.evaluation import Framing
from fastmpl.data.normalise import Normalisation
from fastmpl.errors import ConfigError, StorageError
from fastmpl.learners.protocol import RunLearner
from fastmpl.models import build_network
from fastmpl.models.adapters import merge_adapters
from fastmpl.models.attention import set_attention
from fastmpl.run import checkpoint

WEIGHTS = "student.safetensors"


class Classifier(NamedTuple):
    """A run's student and how to use it. `normalisation` is None for a classifier of points.

    `remark` is a sentence for the user where the run is not finished, and empty where it is.
    """

    module: nn.Module
    config: Config
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    normalisation: Normalisation | None
    remark: str = ""


def save_network(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    classes: tuple[str, ...],
    image_shape: tuple[int, ...],
    normalisation: Normalisation | None,
    framing: Framing | None = None,
) -> Path:
    """Writes the weights, adapters merged; the metadata holds classes, image shape, normalisation and framing."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in merge_adapters(weights).items()}
    facts = {"class_names": json.dumps(classes), "image_shape": " ".join(map(str, image_shape))}
    if normalisation is not None:
        facts |= {name: " ".join(map(repr, values)) for name, values in normalisation._asdict().items()}
    if framing is not None:
        facts |= {name: str(value) for name, value in framing._asdict().items()}
    draft = folder / f"{WEIGHTS}.tmp"
    draft.write_bytes(safetensors.torch.save(tensors, facts))
    return draft.replace(folder / WEIGHTS)


def save_student(
    folder: Path,
    student: RunLearner,
    *,
    classes: tuple[str, ...],
    image_shape: tuple[int, ...],
    normalisation: Normalisation | None,
    framing: Framing | None = None,
) -> None:
    """Writes the student's weights, or their average if it keeps one. Every rank calls it; rank 0 writes."""
    with ExitStack() as held:
        held.enter_context(student.use_mean_statistics())
        if student.has_average:
            held.enter_context(student.use_average())
        is_first = student.ranks.rank == 0
        weights = {name: value.cpu() for name, value in student.weights() if is_first}
        if is_first:
            shown: dict[str, Any] = {"normalisation": normalisation, "framing": framing}
            save_network(folder, weights, classes=classes, image_shape=image_shape, **shown)


def student_facts(
    classes: tuple[str, ...],
    image_shape: tuple[int, ...],
    normalisation: Normalisation | None,
    framing: Framing | None = None,
) -> dict[str, Any]:
    """What a checkpoint keeps of its student, besides its weights; for JSON."""
    shown = {} if framing is None else framing._asdict()
    return {"classes": classes, "image_shape": image_shape, "normalisation": normalisation, **shown}


def load_classifier(folder: Path) -> Classifier:
    """The student of the run in `folder`, on the CPU, in evaluation mode: of its newest checkpoint if it is not finished.

    Raises ConfigError if there is neither.
    """
    if (folder / WEIGHTS).is_file():
        return _load_finished(folder)
    if checkpoint.steps(folder / "checkpoints"):
        return _load_newest(folder)
    raise ConfigError(f"{folder} has no {WEIGHTS} and no checkpoint: give the folder of a run, or train it first.")


def _load_finished(folder: Path) -> Classifier:
    config: Config = load(folder / "config.toml")
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            facts = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        classes = _class_names(facts)
        image_shape = tuple(map(int, facts["image_shape"].split()))
        mean, std = (tuple(map(float, facts.get(name, "").split())) for name in Normalisation._fields)
        module = _build(config, classes, image_shape, state)
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{folder / WEIGHTS} is damaged or belongs to another run: `fastmpl train {folder / 'config.toml'}` writes it "
            "again from the last checkpoint."
        ) from error
    return Classifier(module, config, classes, image_shape, Normalisation(mean, std) if mean else None)


def _load_newest(folder: Path) -> Classifier:
    """The student in the newest valid checkpoint: the fine-tuned one if it is there, and its average if it keeps one."""
    config: Config = load(folder / "config.toml")
    complaints: list[str] = []
    found = checkpoint.read_newest(folder / "checkpoints", complaints.append)
    if found is None:
        raise StorageError(complaints[0])
    facts = found.facts.get("student")
    if facts is None:
        raise ConfigError(
            f"{folder} is not finished, and its checkpoint is of a version that wrote no class names: "
            f"`fastmpl train {folder / 'config.toml'}` finishes it."
        )
    try:
        classes, image_shape = tuple(map(str, facts["classes"])), tuple(map(int, facts["image_shape"]))
        constants = facts["normalisation"]
        normalisation = None if constants is None else Normalisation(*(tuple(map(float, part)) for part in constants))
        module = _build(config, classes, image_shape, _student_weights(found.tensors))
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{folder} is not finished, and the student in its checkpoint of step {found.step} cannot be read by itself: "
            f"`fastmpl train {folder / 'config.toml'}` finishes the run."
        ) from error
    total = config.run.steps + config.finetune.steps
    remark = f"{folder} is not finished: this is its student at step {found.step} of {total}."
    return Classifier(module, config, classes, image_shape, normalisation, remark)


def _student_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights and buffers of the student in the tensors of a checkpoint, its average where there is one."""
    learner = "finetuned" if any(name.startswith("finetuned/") for name in tensors) else "student"
    own, averaged = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in (f"{learner}/module/", f"{learner}/average/")
    )
    return own | averaged


def _build(
    config: Config, classes: tuple[str, ...], image_shape: tuple[int, ...], state: Mapping[str, Tensor]
) -> nn.Module:
    """The student's network with the tensors of `state`, which may be flat; adapters are merged."""
    state, section = merge_adapters(state), config.student.model_copy(update={"adapter": ""})
    module = build_network(section, classes=len(classes), image_shape=image_shape, seed=0)
    set_attention(module, config.system.attention)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    module.load_state_dict({name: value.reshape(shapes.get(name, value.shape)) for name, value in state.items()})
    return module.eval()


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
