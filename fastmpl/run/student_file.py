"""student.safetensors: the network that a finished run leaves, with its classes, image size and normalisation."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fastmpl.data.evaluation import Framing
from fastmpl.data.normalise import Normalisation
from fastmpl.learners.protocol import RunLearner
from fastmpl.models.adapters import merge_adapters
from fastmpl.run.headline import NetworkName
from fastmpl.run.tensor_file import encode_tensors

WEIGHTS = "student.safetensors"


class FileFacts(NamedTuple):
    """What student.safetensors says of its network."""

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    normalisation: Normalisation | None
    network: NetworkName | Literal[""] = ""
    description: str = ""
    framing: Framing | None = None


def save_network(folder: Path, weights: Mapping[str, Tensor], facts: FileFacts) -> Path:
    """Writes the weights, adapters merged; the metadata holds the facts."""
    tensors = merge_adapters(weights)
    said = {"class_names": json.dumps(facts.classes), "image_shape": " ".join(map(str, facts.image_shape))}
    if facts.normalisation is not None:
        said |= {name: " ".join(map(repr, values)) for name, values in facts.normalisation._asdict().items()}
    if facts.framing is not None:
        said |= {name: str(value) for name, value in facts.framing._asdict().items()}
    said |= {"network": facts.network, "description": facts.description}
    draft = folder / f"{WEIGHTS}.tmp"
    with draft.open("wb") as file:
        file.writelines(encode_tensors(tensors, said))
    return draft.replace(folder / WEIGHTS)


def save_student(folder: Path, student: RunLearner, facts: FileFacts) -> None:
    """Writes the student's weights, or their average if it keeps one. Every rank calls it; rank 0 writes."""
    with ExitStack() as held:
        held.enter_context(student.use_mean_statistics())
        if student.has_average:
            held.enter_context(student.use_average())
        is_first = student.ranks.rank == 0
        weights = {name: value.cpu() for name, value in student.weights() if is_first}
        if is_first:
            save_network(folder, weights, facts)


def student_facts(
    classes: tuple[str, ...],
    image_shape: tuple[int, ...],
    normalisation: Normalisation | None,
    framing: Framing | None = None,
) -> dict[str, Any]:
    """What a checkpoint keeps of its student, besides its weights; for JSON."""
    shown = {} if framing is None else framing._asdict()
    return {"classes": classes, "image_shape": image_shape, "normalisation": normalisation, **shown}
