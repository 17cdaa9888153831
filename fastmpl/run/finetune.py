"""The last phase: the student learns from labelled images, which it never saw while the teacher taught it."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.data.loader import LabelledImages
from fastmpl.data.prefetch import Prefetcher
from fastmpl.data.view_stream import Replacement
from fastmpl.methods.supervised import Supervised
from fastmpl.run.build import AnyLearner
from fastmpl.step.eager import EagerStep, Ramp
from fastmpl.step.single_network_step import alone_step
from fastmpl.step.step_keys import Moment, Report


def finetuned_learner(student: AnyLearner, config: Config) -> AnyLearner:
    """A learner of its own, that starts from the student's average where it keeps one: the better of the two."""
    section = config.student.model_copy(
        update={"lr": config.finetune.lr, "warmup": 0, "wait": 0, "schedule": "constant"}
    )
    return student.successor(section, steps=config.finetune.steps)


def finetune_step(learner: AnyLearner, config: Config, device: torch.device) -> EagerStep:
    """Supervised steps on labelled images alone."""
    run = partial(_run, Supervised(), learner)
    return EagerStep(run, seed=config.run.seed + 1, ramp=Ramp(), device=device, rank=learner.ranks.rank)


def batches(
    stream: Prefetcher[LabelledImages], device: torch.device, note: Callable[[Sequence[Replacement]], None]
) -> Callable[[], Batch]:
    """The stream's images as batches in which nothing is unlabelled; `note` is told which had to be replaced."""

    def following() -> Batch:
        found = stream.next()
        note(found.replaced)
        images, targets, index = (part.to(device) for part in found[:3])
        return Batch(images, targets, index, weak=images[:0], strong=images[:0], unlabelled_index=index[:0])

    return following


def _run(method: Supervised, learner: AnyLearner, parts: Sequence[Batch], moment: Moment, baseline: Tensor) -> Report:
    return alone_step(method, learner, parts, moment)
