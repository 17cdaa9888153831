"""The rivals of feedback that know both the noisy and the trusted labels: both at once, and gold loss correction.

Hendrycks, Mazeika, Wilson and Gimpel, "Using Trusted Data to Train Deep Networks on Labels Corrupted by Severe Noise",
NeurIPS 2018: C_ij, the share of class i that is labelled j, is the mean prediction of a network trained on the noisy
labels over the trusted images of class i. A second network p learns the noisy labels through C, and the trusted ones
directly:

    mean_noisy -log (p(x) C)_label  +  weight * mean_trusted -log p(x)_label

With C the identity this is training on both sets of labels. A finished run's folder holds what a trainer's would.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.config import Config, difference, load, save
from fastmpl.data.build import Data
from fastmpl.data.build import build as build_data
from fastmpl.learners.plain import PlainLearner
from fastmpl.models import build_network
from fastmpl.run.build import STUDENT_SEED
from fastmpl.run.classifier import load_network
from fastmpl.run.headline import NetworkName
from fastmpl.run.scores import Scorer
from fastmpl.run.student_file import FileFacts, save_network
from fastmpl.study.arms import Outcome
from fastmpl_kernels import keyed

SMALLEST = 1e-7  # of a probability, before its logarithm


class CorrectionTask(NamedTuple):
    """A run to make. `noisy` is the folder of the run that was trained on the noisy labels alone."""

    config: Config
    noisy: Path
    correction: Literal["identity", "gold"]
    trusted_weight: float


def corrected_loss(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], corruption: Float[Tensor, "K K"]
) -> Float[Tensor, ""]:
    """mean -log (softmax(z) C)_label."""
    return F.nll_loss((torch.softmax(logits, -1) @ corruption).clamp(min=SMALLEST).log(), labels)


@torch.no_grad()
def corruption_of(probabilities: Float[Tensor, "M K"], labels: Int[Tensor, "M"]) -> Float[Tensor, "K K"]:
    """C: row i is the mean of the rows whose trusted label is i; the identity's where no image has it."""
    classes = probabilities.shape[1]
    members = F.one_hot(labels, classes).T.to(probabilities.dtype)
    counts = members.sum(1, keepdim=True)
    return torch.where(counts > 0, members @ probabilities / counts.clamp(min=1), torch.eye(classes))


def train_corrected(task: CorrectionTask) -> Outcome:
    """Trains the task's run, or reads it where it was done with these settings."""
    config = task.config
    folder = Path(config.run.output) / config.run.name
    asked = {"correction": task.correction, "trusted_weight": task.trusted_weight}
    if (folder / "results.json").is_file():
        outcome: Outcome = json.loads((folder / "results.json").read_text())
        if outcome["asked"] == asked and not difference(load(folder / "config.toml"), config):
            return outcome
    torch.set_num_threads(1)
    data = build_data(config.data, seed=config.run.seed)
    corruption = torch.eye(len(data.classes))
    if task.correction == "gold":
        corruption = _corruption(data, task.noisy, _kept_network(config))
    learner = _train(config, data, corruption, task.trusted_weight)
    outcome = {"asked": asked, "last": Scorer(data, learner.device).accuracies({"student": learner})}
    outcome |= {"selected": None, "seconds": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    save(config, folder / "config.toml")
    with learner.use_average() if learner.has_average else nullcontext(learner.module) as module:
        facts = FileFacts(data.classes, data.image_shape, data.normalisation, _kept_network(config))
        save_network(folder, module.state_dict(), facts)
    (folder / "results.json").write_text(json.dumps(outcome, indent=1) + "\n")
    return outcome


def _kept_network(config: Config) -> NetworkName:
    return "average" if config.student.average else "last"


def _corruption(data: Data, noisy: Path, network: NetworkName) -> Float[Tensor, "K K"]:
    """By the network of the last step, as in the records of every arm: none is selected."""
    judge = load_network(noisy, classes=len(data.classes), image_shape=data.image_shape, network=network).eval()
    held = data.examples(data.split.trusted)
    with torch.no_grad():
        return corruption_of(torch.softmax(judge(held.images), -1), held.labels)


def _train(config: Config, data: Data, corruption: Float[Tensor, "K K"], weight: float) -> PlainLearner:
    """A student trained on the noisy labels through C and on the trusted ones; it starts as every arm's of this seed."""
    seed = config.run.seed * 1009 + STUDENT_SEED
    module = build_network(config.student, classes=len(data.classes), image_shape=data.image_shape, seed=seed)
    learner = PlainLearner(module, config.student, steps=config.run.steps, average=config.student.average)
    noisy = data.finetune("labelled", config.data.batch_labelled)
    trusted = data.finetune("trusted", min(data.trusted_count, config.data.batch_labelled))
    for number in range(config.run.steps):
        step = torch.tensor(number)
        wrong, right = noisy.next(), trusted.next()
        logits = learner.forward(torch.cat([wrong.images, right.images]), keyed.combine(step, seed))
        of_noisy, of_trusted = torch.split(logits, [len(wrong.images), len(right.images)])
        loss = corrected_loss(of_noisy, wrong.targets, corruption)
        learner.accumulate(loss + weight * F.cross_entropy(of_trusted, right.targets))
        learner.apply(step)
    return learner
