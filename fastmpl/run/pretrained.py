"""Reads the weights that a network starts from: a file, a folder in timm's form, a run, or timm's hub."""

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastmpl.data.classes import class_order
from fastmpl.data.errors import DataError
from fastmpl.errors import ConfigError
from fastmpl.models.pretrained import Weights, require_finite
from fastmpl.run.classifier import load_classifier

HUB: Final = "hub"
WRAPPERS: Final = ("state_dict_ema", "model_ema", "state_dict", "model")  # keys under which trainers keep weights
FILES: Final = ("model.safetensors", "pytorch_model.bin")  # of a folder in timm's form


class Start(NamedTuple):
    """Weights to start from, and what the run notes of them."""

    weights: Weights
    sha256: str  # of the file, empty for timm's hub
    remarks: tuple[str, ...] = ()


def read_start(source: str, role: str, classes: tuple[str, ...]) -> Start:
    """The weights named by `<role>.pretrained`, for a network of these classes.

    source: "hub", a .safetensors or .pth file, a folder in timm's form, or a run. The classifier is kept where the class
    names of a run are the data's, in whatever order. Raises ConfigError with the cause.
    """
    if source == HUB:
        return Start(Weights(source, None), "")
    path = Path(source)
    if (path / "config.toml").is_file():
        return _read_run(path, role, classes)
    if path.is_dir():
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            raise ConfigError(
                f'{role}.pretrained = "{source}" is a folder with neither config.toml (a run) nor {" nor ".join(FILES)} '
                "(weights of timm): name the file of weights."
            )
        path = file
    if not path.is_file():
        raise ConfigError(
            f'{role}.pretrained = "{source}" does not exist: name a .safetensors or .pth file, a run, or "hub" for the '
            'weights that timm knows for "timm:NAME".'
        )
    tensors = _read_file(path, f'{role}.pretrained = "{source}"')
    remark = f"{role}.pretrained does not name its classes, so the classifier starts new."
    return Start(Weights(source, tensors), _sha256(path), (remark,))


def _read_run(folder: Path, role: str, classes: tuple[str, ...]) -> Start:
    held = load_classifier(folder)
    tensors = dict(held.module.state_dict())
    require_finite(tensors, f'{role}.pretrained = "{folder}"')
    digest = hashlib.sha256(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})).hexdigest()
    notes = (held.remark,) if held.remark else ()
    try:
        order = torch.from_numpy(class_order(held.classes, classes, f"The run {folder}"))
    except DataError:
        remark = f"The classes of {role}.pretrained = {folder} are not the data's, so the classifier starts new."
        return Start(Weights(str(folder), tensors), digest, (remark, *notes))
    if not torch.equal(order, torch.arange(len(order))):
        notes = (f"The classifier of {role}.pretrained = {folder} is put into the data's order of classes.", *notes)
    return Start(Weights(str(folder), tensors, order), digest, notes)


def _read_file(path: Path, asked: str) -> dict[str, Tensor]:
    """The tensors of a file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of pickles, which are refused
                found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{asked} holds more than tensors, and is not loaded, because that could run a program. Save its state_dict "
            "alone, as .safetensors."
        ) from error
    except (safetensors.SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{asked} is no readable file of weights ({reason[:120]}): fetch it again.") from error
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {str(name).removeprefix("module."): value for name, value in dict(found).items()} if found else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ConfigError(f"{asked} holds no weights: it needs tensors by name, as a state_dict has them.")
    require_finite(tensors, asked)
    return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
