"""Repeats one step of a run from a checkpoint, without changing the run's folder: `fastmpl replay RUN/nan/step-N`."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch

from fastmpl.config import load
from fastmpl.distributed.process_group import Group, Place
from fastmpl.distributed.ranks import ALONE
from fastmpl.distributed.signals import Stopper
from fastmpl.errors import ConfigError, StorageError
from fastmpl.run import checkpoint, finetune
from fastmpl.run.scores import Network
from fastmpl.run.training import Training
from fastmpl.step.uncredited_step import UNMEASURED


class Replayed(NamedTuple):
    """A step that was taken again."""

    step: int
    metrics: dict[str, float]  # as in metrics.jsonl; not finite where the step's were not; what it measures
    every: int  # of the steps, one in so many credits the labels; 0: this one does
    largest: dict[Network, float]  # the largest parameter of each network, before the step
    images: dict[str, tuple[str, ...]]  # names of the batch's images, by part


def replay(path: Path) -> Replayed:
    """Takes the step after the checkpoint at `path`, which lies in a run's folder, and says what it computed.

    The step is taken eagerly and by one process: on the hardware and with the number of ranks of the run it is the same
    bit for bit, and otherwise up to rounding. Raises ConfigError if `path` is no checkpoint in a run's folder.
    """
    folder = path.resolve().parents[1] if len(path.resolve().parents) > 1 else path
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{path} is not RUN/nan/step-N or RUN/checkpoints/step-N: {folder} has no config.toml.")
    config = load(folder / "config.toml")
    try:
        found = checkpoint.read(path)
    except StorageError as error:
        raise ConfigError(f"{path} is no checkpoint: {error.args[0]}") from error
    run = Training(config, folder, True, Group(ALONE, Stopper()), Place(), starts=False)
    with closing(run.networks):
        run.continue_from(found)
        largest = {name: _largest(learner.weights()) for name, learner in run.networks.to_evaluate().items()}
        if run.step < config.run.steps:
            batch, step = next(run.data.train).to(run.device), run.networks.trainee.step
            is_between = step.is_between
        else:
            _, step = run.networks.open_finetuning()
            settings = config.finetune
            stream = run.data.finetune(settings.images, settings.batch, run.step - config.run.steps)
            batch, is_between = finetune.make_batches(stream, run.device, lambda replaced: None)(), False
        metrics = step(batch)
        names = run.data.names
        images = {
            part: tuple(names[i] for i in index.tolist() if i < len(names))
            for part, index in (("labelled", batch.labelled_index), ("unlabelled", batch.unlabelled_index))
        }
        run.data.train.close()
    measured = {name: float(v) for name, v in metrics._asdict().items() if not (is_between and name in UNMEASURED)}
    return Replayed(run.step + 1, measured, config.feedback.every if is_between else 0, largest, images)


def _largest(weights: Iterator[tuple[str, torch.Tensor]]) -> float:
    return max((float(value.detach().abs().max()) for _, value in weights if value.numel()), default=0.0)
