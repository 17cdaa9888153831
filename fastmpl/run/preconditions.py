"""Conditions that must hold before a run starts; each function raises an error if one does not."""

from typing import Final

import torch

from fastmpl.config import Config, feeds_back_from_trusted, learns_unlabelled, takes_trusted
from fastmpl.data.errors import DataError
from fastmpl.data.split import Split
from fastmpl.distributed.ranks import Ranks
from fastmpl.errors import ConfigError
from fastmpl_kernels.library import StaleLibraryError, library

SLOW: Final = 30  # times that a rate of fine-tuning is below the student's, from where it is remarked on


def require_kernels() -> None:
    """Raises ConfigError if the native kernels were built from other sources than those of this installation."""
    try:
        library()
    except StaleLibraryError as error:
        raise ConfigError(str(error)) from error


def require_graph(config: Config) -> None:
    """Raises ConfigError if the step is to be a CUDA graph at any rate and there is no GPU."""
    if config.system.graph == "on" and not torch.cuda.is_available():
        raise ConfigError('system.graph = "on" needs a CUDA device, and there is none. Use graph = "auto".')


def require_trusted(config: Config, count: int) -> None:
    """Raises DataError if trusted images are asked for and the data has none."""
    asked = {
        'feedback.images = "trusted"': feeds_back_from_trusted(config),
        'method.name = "gold_correction"': config.method.name == "gold_correction",
        'finetune.images = "trusted"': config.finetune.steps > 0 and config.finetune.images == "trusted",
    }
    for key, used in asked.items():
        if used and not count:
            raise DataError(
                f"{key}, and {config.data.root} has no folder trusted: "
                "put clean images into trusted/<class>/, or set data.trusted above 0 to take some of the labelled images."
            )


def remark_on_finetuning(config: Config, split: Split) -> list[str]:
    """Sentences on fine-tuning whose defaults, which are for many images, suit those that there are badly."""
    tuned = config.finetune
    images = len(split.trusted if tuned.images == "trusted" else split.labelled)
    if not (tuned.steps and images):
        return []
    said = []
    if tuned.batch >= 2 * images:
        said.append(
            f"finetune.batch = {tuned.batch}, and there are {images} {tuned.images} images: a step computes each of them "
            f"{tuned.batch / images:.0f} times. finetune.batch = {images} takes as much less time."
        )
    if tuned.lr * SLOW <= config.student.lr:
        said.append(
            f"finetune.lr = {tuned.lr:g} is {config.student.lr / tuned.lr:.0f} times smaller than student.lr: "
            f"{tuned.steps} steps may change little. Compare larger rates on validation images."
        )
    return said


def require_full_batches(config: Config, split: Split) -> None:
    """Raises DataError if a batch that the method uses is larger than its set of images: it would hold an image twice.

    Trusted images are exempt where data.batch_trusted is 0: they are repeated to the size of the labelled batch.
    """
    settings = config.data
    batches = {"labelled": (settings.batch_labelled, len(split.labelled))}
    if learns_unlabelled(config):
        batches["unlabelled"] = settings.batch_unlabelled, len(split.unlabelled)
    if takes_trusted(config):
        batches["trusted"] = settings.batch_trusted, len(split.trusted)
    for part, (batch, images) in batches.items():
        if batch > images:
            apart = f", after {len(split.validation)} for data.validation" if len(split.validation) else ""
            raise DataError(
                f"data.batch_{part} = {batch}, and there are {images} {part} images to train on{apart}: set "
                f"data.batch_{part} to {images} or less."
            )


def require_same_data(fingerprint: object, ranks: Ranks) -> None:
    """Raises DataError on all ranks if they did not find the same data and the same split."""
    every = ranks.all_gather_object(fingerprint)
    differing = [rank for rank, found in enumerate(every) if found != every[0]]
    if differing:
        raise DataError(
            f"rank {differing[0]} found other images than rank 0: give all machines the same files and the same list of "
            "`fastmpl check` (in XDG_CACHE_HOME, else ~/.cache), or run `fastmpl check` on each machine."
        )
