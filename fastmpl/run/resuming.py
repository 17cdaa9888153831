"""What a run may continue from: which checkpoint, with which settings, and what becomes of a later continuation."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from fastmpl.config import Config, NetworkConfig, difference, load
from fastmpl.errors import ConfigError, StorageError
from fastmpl.learners.rates import rate
from fastmpl.run import checkpoint
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.checkpoint_files import read_manifest
from fastmpl.run.selection import PREFIX as SELECTED

CHECKPOINTS: Final = "checkpoints"
RESULTS: Final = ("results.json", "student.safetensors", "report.html")  # files of a finished run

# These may change when a run is continued, because they change neither the data nor the arithmetic.
HARMLESS: Final = {
    *("run.output", "run.log_every", "run.evaluate_every", "run.checkpoint_every", "run.keep"),
    *("run.patience", "run.analyse"),
    *("system.threads", "system.timeout"),
}


class Position(BaseModel, extra="allow"):
    """The position in the data, as `fastmpl.data.loader` writes it."""

    step: int = Field(ge=0, strict=True)
    fingerprint: dict[str, Any]


class Best(BaseModel, extra="allow"):
    """The best student by its score on the validation images, run.select_by."""

    step: int = Field(ge=0, strict=True)
    network: Literal["student", "average"]
    validation: float = Field(ge=0, le=1)  # accuracy
    score: float = Field(default=0.0, allow_inf_nan=False)
    loss: float = Field(default=0.0, allow_inf_nan=False)  # on the validation images; it decides between equal scores


class Facts(BaseModel, extra="allow"):
    """What a checkpoint keeps besides tensors."""

    data: Position
    best: Best | None
    evaluations_since_best: int = Field(default=0, ge=0, strict=True)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    pretrained: dict[str, str] = {}
    student: dict[str, Any] | None = None


# These change the arithmetic and neither the networks nor the data: --force continues with them.
FORCEABLE: Final = {
    *(
        f"{role}.{key}"
        for role in ("teacher", "student")
        for key in ("lr", "weight_decay", "clip", "momentum", "dropout")
    ),
    *("feedback.weight", "feedback.every", "uda.weight", "uda.temperature", "uda.threshold", "uda.ramp", "finetune.lr"),
    *("method.temperature", "method.threshold", "method.supervised_weight", "method.trusted_weight"),
    *("system.precision", "system.schedule", "system.deferred", "system.recompute", "system.accumulate"),
    *("system.graph", "system.compile", "system.kernels", "system.channels_last", "system.tf32", "system.benchmark"),
}


def asked_step(folder: Path, resume: str) -> int:
    """The step that a run in `folder` continues from by the names of its checkpoints; 0 if it starts.

    Raises ConfigError if `resume` is neither "auto" nor "never" nor the folder of a checkpoint.
    """
    if resume == "never":
        return 0
    if resume == "auto":
        return next(iter(checkpoint.steps(folder / CHECKPOINTS)), 0)
    try:
        return int(read_manifest(Path(resume))["step"])
    except (StorageError, OSError) as error:
        reason = str(error.args[0]) if isinstance(error, StorageError) else f"{resume} cannot be read."
        raise ConfigError(
            f"--resume {resume} is no checkpoint: {reason} Give auto, never, or a folder such as "
            f"{folder / CHECKPOINTS / 'step-100'}."
        ) from error


def check_settings(folder: Path, config: Config, step: int, *, force: bool = False) -> list[str]:
    """Sentences on settings that differ from those of the folder's run, which continues after `step`.

    Raises ConfigError that names the settings in which a run cannot change. run.steps may be raised.
    """
    old_file, saved = folder / "config.toml", checkpoint.steps(folder / CHECKPOINTS)
    if not old_file.is_file() or not saved:
        return []
    old = load(old_file)
    differing = [key for key in difference(old, config) if key not in HARMLESS]
    remarks = []
    if "run.steps" in differing and config.run.steps > old.run.steps:
        if step > old.run.steps:
            raise ConfigError(
                f"run.steps cannot be raised from {old.run.steps} to {config.run.steps} at step {step}, which is one of "
                f"fine-tuning. Continue at a checkpoint of step {old.run.steps} or before by --resume PATH, or use "
                "--resume never."
            )
        differing.remove("run.steps")
        remarks.append(_describe_more_steps(old, config, step))
    forced = [key for key in differing if key in FORCEABLE]
    if force and len(forced) == len(differing):
        return [*remarks, *_describe_forced(old, config, forced)]
    if differing:
        allowed = "" if len(forced) < len(differing) else "--force to continue with them, "
        raise ConfigError(
            f"{folder} holds a run with other settings ({', '.join(differing)}). Set them back, use another run.name, or "
            f"{allowed}--resume never to start over; run.steps may be raised."
        )
    return remarks


def _describe_forced(old: Config, new: Config, keys: list[str]) -> list[str]:
    def value(config: Config, key: str) -> object:
        section, name = key.split(".")
        return getattr(getattr(config, section), name)

    changed = ", ".join(f"{key} from {value(old, key)} to {value(new, key)}" for key in keys)
    sentence = f"Continuing with other settings ({changed}): the run is not the one that had them from its start."
    return [sentence] if keys else []


def _describe_more_steps(old: Config, new: Config, step: int) -> str:
    def learning_rate(config: Config) -> str:
        student: NetworkConfig = config.student
        found = rate(
            torch.tensor(step),
            peak=student.lr,
            steps=config.run.steps,
            warmup=student.warmup,
            wait=student.wait,
            schedule=student.schedule,
        )
        return f"{float(found):.3g}"

    return (
        f"run.steps was raised from {old.run.steps} to {new.run.steps}: from step {step} on, learning rates follow the "
        f"longer schedule (the student's goes from {learning_rate(old)} to {learning_rate(new)}), so the run is not the "
        f"one that has {new.run.steps} steps from its start."
    )


def require_fitting(
    found: Checkpoint, name: str, here: Mapping[str, Tensor], sharded: Collection[str], config: Config
) -> None:
    """Raises ConfigError if a checkpoint does not fit the run: another phase, other tensors, or too many steps.

    name: of the checkpoint. here: the run's own state, of its main phase; sharded: names in it of which ranks hold shards.
    """
    total, steps = config.run.steps + config.finetune.steps, config.run.steps
    if found.step > total:
        raise ConfigError(f"{name} is of step {found.step}, and this run has {total} steps: raise run.steps.")
    finetuned = any(key.startswith("finetuned/") for key in found.tensors)
    if finetuned != (found.step > steps):
        phase = "fine-tuning" if finetuned else "the main phase"
        raise ConfigError(
            f"{name} is of step {found.step} in {phase}, and run.steps = {steps}: set run.steps as it was."
        )
    theirs = {key for key in found.tensors if not key.startswith(("finetuned/", "finetune_step/", SELECTED))}
    pieces = {*found.sharded, *sharded}
    for key in sorted((theirs ^ set(here)) - pieces) or sorted((theirs & set(here)) - pieces):
        left, right = (state[key].shape if key in state else None for state in (found.tensors, here))
        if left != right:
            raise ConfigError(
                f"{name} does not fit this configuration: {key} is {_describe(left)} in it, and {_describe(right)} here. "
                "Set model, optimiser, average and engine as they were when it was written."
            )
    _require_selected(found, name, here, pieces)
    _require_values(found, name, here, pieces, steps)


def _require_selected(found: Checkpoint, name: str, here: Mapping[str, Tensor], pieces: Collection[str]) -> None:
    """Raises StorageError where the weights of the best student are not a student's."""
    student = "student/module/"
    ours = {key.removeprefix(student): value.shape for key, value in here.items() if key.startswith(student)}
    theirs = {key.removeprefix(SELECTED): v.shape for key, v in found.tensors.items() if key.startswith(SELECTED)}
    whole = {key for key in ours if f"{student}{key}" not in pieces}
    if theirs and any(theirs.get(key) != ours[key] for key in whole):
        raise StorageError(f"{name} holds weights of the best student that are not this student's.")


def _require_values(
    found: Checkpoint, name: str, here: Mapping[str, Tensor], pieces: Collection[str], steps: int
) -> None:
    """Raises StorageError if the tensors of a checkpoint that fits are no state that a run can have.

    A hash says that a file is as it was written, and not that what wrote it was sound.
    """
    for key, value in found.tensors.items():
        if key not in pieces and key in here and value.dtype != here[key].dtype:
            raise StorageError(f"{name} holds {key} as {value.dtype}, and this run as {here[key].dtype}.")
        # versions up to 0.1.0 could save a baseline that is not finite; loading it repairs it
        if value.is_floating_point() and not value.isfinite().all() and not key.endswith("/baseline"):
            raise StorageError(f"{name} holds numbers that are not finite in {key}.")
    taken = found.tensors.get("step/step")
    if taken is not None and int(taken) != min(found.step, steps):
        raise StorageError(f"{name} is of step {found.step} by its name, and of step {int(taken)} by its state.")
    try:
        Facts.model_validate(found.facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StorageError(f"{name} has facts that a run does not write ({where}: {first['msg']}).") from error
    position = found.facts["data"]["step"]
    if position != min(found.step, steps):
        raise StorageError(f"{name} is of step {found.step}, and its position in the data of step {position}.")


def _describe(shape: torch.Size | None) -> str:
    return "absent" if shape is None else f"of shape {list(shape)}"


def set_newer_aside(folder: Path, step: int) -> str | None:
    """Moves checkpoints after `step` and the results of a finished run into `folder`/abandoned-N; a sentence on it.

    A run that goes back to an earlier checkpoint would otherwise continue from the abandoned ones later. None if nothing
    was moved.
    """
    newer = [folder / CHECKPOINTS / f"step-{found}" for found in checkpoint.steps(folder / CHECKPOINTS) if found > step]
    if not newer:
        return None
    number = 1
    while (aside := folder / f"abandoned-{number}").exists():
        number += 1
    (aside / CHECKPOINTS).mkdir(parents=True)
    for path in newer:
        path.rename(aside / CHECKPOINTS / path.name)
    for path in (folder / name for name in RESULTS):
        if path.exists():
            path.rename(aside / path.name)
    return f"{len(newer)} checkpoints after step {step} are of a continuation that is abandoned: {aside} keeps them."
