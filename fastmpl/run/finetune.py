"""The last phase: the student is fine-tuned on labelled images, which it did not see in the main phase."""

from collections.abc import Callable, Sequence

import torch

from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.data.loader import LabelledImages
from fastmpl.data.prefetch import Prefetcher
from fastmpl.data.view_stream import Replacement
from fastmpl.learners.protocol import RunLearner
from fastmpl.methods.supervised import Supervised
from fastmpl.step.eager import EagerStep, Ramp
from fastmpl.step.single_network_step import SingleNetworkStep


def make_finetuned_learner(student: RunLearner, config: Config) -> RunLearner:
    """A new learner that starts from the student's averaged weights, or from its weights if it keeps no average."""
    changes: dict[str, object] = {"lr": config.finetune.lr, "warmup": 0, "wait": 0, "schedule": "constant"}
    if config.student.freeze_steps:  # what was frozen at first has learnt since
        changes |= {"freeze": 0, "freeze_steps": 0}
    section = config.student.model_copy(update=changes)
    return student.successor(section, steps=config.finetune.steps)


def make_finetune_step(learner: RunLearner, config: Config, device: torch.device) -> EagerStep:
    """The supervised step on labelled images."""
    step = SingleNetworkStep(Supervised(), learner)
    return EagerStep(step, seed=config.run.seed + 1, ramp=Ramp(), device=device, rank=learner.ranks.rank)


def make_batches(
    stream: Prefetcher[LabelledImages], device: torch.device, note: Callable[[Sequence[Replacement]], None]
) -> Callable[[], Batch]:
    """A function that gives the next batch of `stream`, without unlabelled images; `note` gets the replaced images."""

    def next_batch() -> Batch:
        found = stream.next()
        note(found.replaced)
        images, targets, index = (part.to(device) for part in found[:3])
        return Batch(images, targets, index, weak=images[:0], strong=images[:0], unlabelled_index=index[:0])

    return next_batch
