"""How labels are confused, as gold loss correction needs it: estimated when a run begins, kept in its checkpoints.

The judge is a finished run that learned the noisy labels. Its averaged network, or that of its headline where it keeps no
average, sees the trusted images once, as it is evaluated. A run that continues reads the matrix from its checkpoint and
needs the judge no more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fastmpl.config import load
from fastmpl.data.build import Data
from fastmpl.errors import ConfigError
from fastmpl.learners.state import Placement
from fastmpl.methods.gold_correction import CorruptionEstimate, estimate_corruption
from fastmpl.run import checkpoint
from fastmpl.run.checkpoint_files import FACTS, read_json
from fastmpl.run.fixed_teacher import Target, load_fixed_teacher
from fastmpl.run.headline import NetworkName
from fastmpl.run.resuming import CHECKPOINTS

SHOWN = 10  # classes that are named
SAME = ("images", "split")  # of the data's fingerprint: the images with their true labels; the parts with those learned


class KeptCorruption:
    """The matrix as a part of what training continues from."""

    def __init__(self, matrix: Float[Tensor, "K K"]) -> None:
        self.matrix = matrix

    def state(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def placement(self) -> Placement:
        return Placement()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.matrix.copy_(tensors["matrix"])


class Estimated(NamedTuple):
    """The matrix on the host, and sentences on it."""

    matrix: Float[Tensor, "K K"]
    remarks: tuple[str, ...]


def require_judge(model: str, fingerprint: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the run in the folder `model` learned this run's noisy labels, and those alone.

    fingerprint: of this run's data. A network that learned trusted images too says that labels are better than they are.
    """
    folder = Path(model)
    if not (folder / "config.toml").is_file():
        raise ConfigError(f'teacher.model = "{model}" is no folder of a run: it has no config.toml.')
    config = load(folder / "config.toml")
    needed = 'method.name = "gold_correction" needs a run of method.name = "supervised" on the same data'
    if config.method.name != "supervised":
        raise ConfigError(f'teacher.model = "{model}" was trained by "{config.method.name}", and {needed}.')
    if config.finetune.steps and config.finetune.images == "trusted":
        raise ConfigError(f'teacher.model = "{model}" was fine-tuned on the trusted images, and {needed} without that.')
    saved = checkpoint.steps(folder / CHECKPOINTS)
    if not saved:
        raise ConfigError(
            f'teacher.model = "{model}" has no checkpoint, which tells the labels that it learned: train it.'
        )
    facts = read_json(folder / CHECKPOINTS / f"step-{saved[0]}" / FACTS)
    position = facts.get("data")
    theirs = position.get("fingerprint") if isinstance(position, Mapping) else None
    if not isinstance(theirs, Mapping) or any(theirs.get(key) != fingerprint[key] for key in SAME):
        raise ConfigError(
            f'teacher.model = "{model}" learned other images or labels than this run has: train it with the same [data] '
            "and run.seed."
        )


def estimate_by_run(model: str, data: Data, device: torch.device) -> Estimated:
    """The corruption of the labels of `data`, by the run in the folder `model`. Raises ConfigError if it cannot tell."""
    fingerprint = data.train.state()["fingerprint"]
    assert isinstance(fingerprint, Mapping)
    require_judge(model, fingerprint)
    # The last step's average where there is one: its probabilities are nearer to the shares of labels. The network of the
    # headline is selected by its answers, and may be one that has learned wrong labels by heart.
    network: NetworkName | None = "average" if load(Path(model) / "config.toml").student.average else None
    judge, remarks = load_fixed_teacher(model, Target(data.classes, data.image_shape, data.normalisation), network)
    judge = judge.to(device)
    with torch.no_grad():
        held = data.examples(data.split.trusted)
        found = estimate_corruption(
            ((judge(images), labels) for images, labels in held.batches(device)), len(data.classes)
        )
    return Estimated(found.matrix, (*remarks, *_describe(found, data.classes, model)))


def _describe(found: CorruptionEstimate, classes: Sequence[str], model: str) -> list[str]:
    """Sentences on an estimate: how often labels are right, and which classes have no image that tells."""
    there, right = found.images > 0, found.matrix.diag()
    if not there.any():
        return ["No trusted image could be read: labels are taken as they are."]
    worst = int(torch.where(there, right, torch.inf).argmin())
    said = [
        f"By {model} and {int(found.images.sum())} trusted images, {float(right[there].mean()):.0%} of the labels are "
        f"right; of class {classes[worst]}, {float(right[worst]):.0%}."
    ]
    absent = [name for name, known in zip(classes, there.tolist(), strict=True) if not known]
    if absent:
        named = ", ".join(absent[:SHOWN]) + (f" and {len(absent) - SHOWN} others" if len(absent) > SHOWN else "")
        said.append(
            f"No trusted image is of {named}: how its label is confused is not known, and it is taken as right."
        )
    return said
