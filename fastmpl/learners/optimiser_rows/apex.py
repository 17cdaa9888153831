"""NVIDIA apex's fused optimisers: found, told from what only has the name, and built. Nothing else knows apex.

apex is never required. It is built from source on a machine with a GPU (docs/apex.md): the package of that name on PyPI
is an unrelated project, and a build without its CUDA extension (`amp_C`) has no optimiser that runs.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import torch

from fastmpl.config import NetworkConfig, StudentConfig
from fastmpl.config.optimisers import ABILITIES
from fastmpl.errors import ConfigError

ApexState = Literal["absent", "unrelated", "python only", "no gpu", "usable"]
Groups = list[dict[str, Any]]

_FOUND: Final[dict[ApexState, str]] = {
    "absent": "it is not installed",
    "unrelated": "the apex installed is the unrelated PyPI package",
    "python only": "the apex installed has no CUDA extension (amp_C)",
    "no gpu": "it needs a CUDA device, and there is none",
}


class OptimiserError(ConfigError):
    """An optimiser was asked for that this machine does not have."""

    topic = "Optimiser"


def apex_state() -> ApexState:
    """Which apex this environment has, found without importing any of it: another project's code would run."""
    spec = find_spec("apex")
    if spec is None:
        return "absent"
    if not any(Path(folder, "optimizers").is_dir() for folder in spec.submodule_search_locations or ()):
        return "unrelated"
    if find_spec("amp_C") is None:
        return "python only"
    return "usable" if _has_device() else "no gpu"


def _has_device() -> bool:
    return torch.cuda.is_available()


def fused_sgd(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    """Heavy ball."""
    return _optimiser(config)(groups, lr=config.lr, momentum=config.momentum)


def fused_adam(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    """AdamW that counts on the device."""
    optimiser = _optimiser(config)(groups, lr=config.lr, betas=(config.momentum, 0.999), capturable=True)
    for group in optimiser.param_groups:  # present from the first step on; it would be made in that
        group["step"] = torch.zeros(1, dtype=torch.int32, device=group["params"][0].device)
    return optimiser


def fused_lamb(groups: Groups, config: NetworkConfig) -> torch.optim.Optimizer:
    """LAMB. Its own clip by the norm is off: the gradient is clipped by whoever calls, over all ranks."""
    return _optimiser(config)(groups, lr=config.lr, betas=(config.momentum, 0.999), max_grad_norm=float("inf"))


def _optimiser(config: NetworkConfig) -> Callable[..., torch.optim.Optimizer]:
    """The class that config.optimiser names. Raises OptimiserError where it cannot run here."""
    name = config.optimiser.removeprefix("apex:")
    state = apex_state()
    if state != "usable":
        role = "student" if isinstance(config, StudentConfig) else "teacher"
        build = "" if state == "no gpu" else "Build NVIDIA apex (docs/apex.md) or use"
        raise OptimiserError(
            f"apex {name} was asked for, but {_FOUND[state]}. "
            f"{build or 'Use'} --{role}.optimiser {ABILITIES[config.optimiser].instead}."
        )
    found: Callable[..., torch.optim.Optimizer] = getattr(import_module("apex.optimizers"), name)
    return found
