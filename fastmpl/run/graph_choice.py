"""Chooses how the steps of a run are executed: eagerly, as one CUDA graph, with a graph for each pass, or from a tape."""

from collections.abc import Callable
from functools import partial

import torch

from fastmpl.config import Config, is_capturable
from fastmpl.config.meaning import NOT_CAPTURABLE
from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.plain import PlainLearner
from fastmpl.run.build import Trainee
from fastmpl.step.eager import EagerStep
from fastmpl.step.pass_graphs import replay_passes
from fastmpl.step.step_graph import GraphedStep
from fastmpl.step.taped_step import TapedStep

LARGEST_TAPED = 256 << 20  # bytes of state, which is copied twice to try a tape out; steps of more gain nothing


def is_graphed(config: Config, device: torch.device) -> bool:
    """Whether the step is to be one CUDA graph."""
    return device.type == "cuda" and config.system.graph != "off" and is_capturable(config)


def loaded_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The dtype of pictures that the loader decodes at every step.

    A run in bf16 converts them once: in the loader, or in the copy into the static inputs of a graph, which is needed
    anyway.
    """
    converts = config.system.precision == "bf16" and not is_graphed(config, device)
    return torch.bfloat16 if converts else torch.float32


def choose_execution(
    trainee: Trainee, config: Config, device: torch.device, note: Callable[[str], None], *, decodes: bool
) -> EagerStep | GraphedStep | TapedStep:
    """Returns the step of `trainee` as the run will call it.

    On a GPU it is one CUDA graph, unless graphs are switched off. A sharded step is eager, or has one graph a pass if
    graphs are "on". `note` is told a sentence if the step is not one graph although there is a GPU: now, or at the step
    whose capture fails, which is then taken eagerly like all that follow. With graph = "on" a capture that fails raises
    CaptureError. decodes: whether pictures are decoded at every step.

    On a CPU it is run from a tape where a GPU would have one graph; by one process and uncompiled, as a tape sees neither
    collectives nor compiled code.
    """
    system = config.system
    if device.type != "cuda":
        tapes = system.graph != "off" and is_capturable(config) and not system.compile
        size = sum(tensor.nbytes for tensor in trainee.parts().state().values())
        if not tapes or trainee.student.ranks.size > 1 or size > LARGEST_TAPED:
            return trainee.step
        return TapedStep(trainee.step, give_up=partial(_go_on_without_tape, note))
    if system.engine == "zero" and system.graph == "on":
        both = [trainee.student, *([trainee.teacher] if trainee.teacher else [])]
        replay_passes(both, device, never_open_together=system.deferred)
    if is_graphed(config, device):
        give_up = None if system.graph == "on" else partial(_go_on_eagerly, trainee, note)
        images = torch.bfloat16 if decodes and system.precision == "bf16" else None
        agree = partial(_find_reason, trainee.student.ranks)
        return GraphedStep(trainee.step, device, images, give_up=give_up, agree=agree)
    if system.graph == "auto":
        note(f"The step is not one CUDA graph: {NOT_CAPTURABLE}.")
    return trainee.step


def _find_reason(ranks: Ranks, reason: str) -> str:
    """The first rank's reason against a capture; empty where all ranks have captured. Every rank calls it."""
    return next(filter(None, ranks.all_gather_object(reason)), "")


def _go_on_eagerly(trainee: Trainee, note: Callable[[str], None], reason: str) -> None:
    for learner in trainee.learners().values():
        if isinstance(learner, PlainLearner):  # a sharded step is not captured as a whole
            learner.abandon_step()
    note(
        f"The step cannot be captured as a CUDA graph ({reason}). Steps are taken one by one: slower, with the same "
        "numbers."
    )


def _go_on_without_tape(note: Callable[[str], None], reason: str) -> None:
    note(
        f"The operators of the step cannot be run again from a tape ({reason}). Steps are slower, with the same numbers."
    )
