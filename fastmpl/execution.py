"""How a run's steps are executed on its machine: one by one, as one CUDA graph, or sharded passes as graphs."""

from collections.abc import Callable

import torch

from fastmpl.assemble import Trainee
from fastmpl.config import Config, is_capturable
from fastmpl.config.rules import NOT_CAPTURABLE
from fastmpl.errors import ConfigError
from fastmpl.step.eager import EagerStep
from fastmpl.step.graphed import GraphedStep
from fastmpl.step.partial import replay_passes


def executed(
    trainee: Trainee, config: Config, device: torch.device, note: Callable[[str], None]
) -> EagerStep | GraphedStep:
    """The step as it will be called; what cannot be one graph though there is a GPU is said by `note`.

    As one CUDA graph where there is a GPU, unless it is switched off; a sharded one eagerly, or pass by pass where that
    was asked for. Raises ConfigError where a graph was asked for and there is no GPU.
    """
    system = config.system
    if device.type != "cuda":
        if system.graph == "on":
            raise ConfigError('system.graph = "on" needs a CUDA device, and there is none. Use graph = "auto".')
        return trainee.step
    if system.engine == "zero" and system.graph == "on":
        both = [trainee.student, *([trainee.teacher] if trainee.teacher else [])]
        replay_passes(both, device, never_open_together=system.deferred)
    if system.graph != "off" and is_capturable(config):
        return GraphedStep(trainee.step, device)
    if system.graph == "auto":
        note(f"The step is not one CUDA graph: {NOT_CAPTURABLE}.")
    return trainee.step
