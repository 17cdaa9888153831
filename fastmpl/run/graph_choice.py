"""How a run's steps are executed on its machine: one by one, as one CUDA graph, or sharded passes as graphs."""

from collections.abc import Callable

import torch

from fastmpl.config import Config, is_capturable
from fastmpl.config.rules import NOT_CAPTURABLE
from fastmpl.errors import ConfigError
from fastmpl.run.build import Trainee
from fastmpl.step.eager import EagerStep
from fastmpl.step.pass_graphs import replay_passes
from fastmpl.step.step_graph import GraphedStep


def is_graphed(config: Config, device: torch.device) -> bool:
    """Whether the step is one CUDA graph."""
    return device.type == "cuda" and config.system.graph != "off" and is_capturable(config)


def loaded_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The type in which the loader gives pictures that it decodes at every step.

    bf16 is made of them once: by the loader, or by the copy into the static inputs of a graph, which is made anyway.
    """
    converts = config.system.precision == "bf16" and not is_graphed(config, device)
    return torch.bfloat16 if converts else torch.float32


def executed(
    trainee: Trainee, config: Config, device: torch.device, note: Callable[[str], None], *, decodes: bool
) -> EagerStep | GraphedStep:
    """The step as it will be called; what cannot be one graph though there is a GPU is said by `note`.

    As one CUDA graph where there is a GPU, unless it is switched off; a sharded one eagerly, or pass by pass where that
    was asked for. `decodes`: whether pictures are decoded at every step. Raises ConfigError where a graph was asked for
    and there is no GPU.
    """
    system = config.system
    if device.type != "cuda":
        if system.graph == "on":
            raise ConfigError('system.graph = "on" needs a CUDA device, and there is none. Use graph = "auto".')
        return trainee.step
    if system.engine == "zero" and system.graph == "on":
        both = [trainee.student, *([trainee.teacher] if trainee.teacher else [])]
        replay_passes(both, device, never_open_together=system.deferred)
    if is_graphed(config, device):
        return GraphedStep(trainee.step, device, torch.bfloat16 if decodes and system.precision == "bf16" else None)
    if system.graph == "auto":
        note(f"The step is not one CUDA graph: {NOT_CAPTURABLE}.")
    return trainee.step
