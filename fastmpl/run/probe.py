"""A linear probe: linear classifiers on the stored features of a frozen network, at several rates at once.

R classifiers, one a rate, are trained on the same batches: SGD with Nesterov's momentum 0.9 on the cross-entropy, from
zero, along a half cosine. The one with the best validation accuracy is put into the network and becomes the run's student.
F features, K classes, B images of a batch.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fastmpl.config import Config
from fastmpl.data.build import Data
from fastmpl.data.build import build as build_data
from fastmpl.data.evaluation import framing_of
from fastmpl.data.memory.evaluation_set import EvaluationSet
from fastmpl.data.stores.features import Standardisation, measure_features, open_features
from fastmpl.errors import ConfigError
from fastmpl.learners.rates import rate as rate_at
from fastmpl.run.closing import Results
from fastmpl.run.expected_inputs import settle_inputs
from fastmpl.run.features import FrozenNetwork, data_of_images, load_frozen, store_features
from fastmpl.run.folder import claim_folder, replace_file, write_status
from fastmpl.run.network_preconditions import require_label_of_each_class
from fastmpl.run.scores import Split
from fastmpl.run.student_file import FileFacts, save_network

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
MOMENTUM = 0.9


class Heads(NamedTuple):
    """R linear classifiers of the same features."""

    weight: Float[Tensor, "R K F"]
    bias: Float[Tensor, "R K"]

    def logits(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "R B K"]:
        return torch.baddbmm(self.bias[:, None], features.expand(len(self.bias), -1, -1), self.weight.mT)


class HeadScore(NamedTuple):
    """One rate's accuracies in [0, 1] and its loss (nats) on the validation images; `test` is None without test images."""

    rate: float
    validation: float
    loss: float
    test: float | None


class ProbeResult(NamedTuple):
    """What a probe found: the scores of every rate, and which one was chosen."""

    scores: tuple[HeadScore, ...]
    chosen: int
    results: Results
    features: Path  # the folder of the stored features


@torch.no_grad()
def train_heads(
    next_batch: Callable[[], tuple[Tensor, Tensor]],
    rates: Sequence[float],
    *,
    features: int,
    classes: int,
    steps: int,
    weight_decay: float,
) -> Heads:
    """Heads of all `rates` after `steps`, on the batches (features [B, F], targets [B]) of `next_batch`."""
    peaks = torch.tensor(rates)[:, None, None]
    heads = Heads(torch.zeros(len(rates), classes, features), torch.zeros(len(rates), classes))
    moments = Heads(*(torch.zeros_like(part) for part in heads))
    for step in range(steps):
        images, targets = next_batch()
        error = (heads.logits(images).softmax(-1) - F.one_hot(targets, classes)) / len(images)  # d loss / d logits
        gradients = Heads(error.mT @ images + weight_decay * heads.weight, error.sum(1))
        share = rate_at(torch.tensor(step), peak=1.0, steps=steps, warmup=0, wait=0, schedule="cosine")
        for part, moment, gradient, peak in zip(heads, moments, gradients, (peaks, peaks[..., 0]), strict=True):
            moment.mul_(MOMENTUM).add_(gradient)
            part.sub_(share * peak * (gradient + MOMENTUM * moment))
    return heads


@torch.no_grad()
def _score(heads: Heads, held: EvaluationSet) -> tuple[list[float], list[float]]:
    """Accuracies and mean losses of all heads."""
    right, loss, count = torch.zeros(len(heads.bias)), torch.zeros(len(heads.bias)), 0
    for features, targets in held.batches():
        logits = heads.logits(features)
        right += (logits.argmax(-1) == targets).sum(-1)
        loss += F.cross_entropy(logits.permute(1, 2, 0), targets[:, None].expand(-1, len(loss)), reduction="none").sum(
            0
        )
        count += len(targets)
    return (right / count).tolist(), (loss / count).tolist()


def _choose(scores: Sequence[HeadScore]) -> int:
    """The best on the validation images; of equal accuracies the one with the lower loss."""
    return min(range(len(scores)), key=lambda number: (-scores[number].validation, scores[number].loss))


def fold_head(
    weight: Float[Tensor, "K F"], bias: Float[Tensor, "K"], standardise: Standardisation
) -> tuple[Float[Tensor, "K F"], Float[Tensor, "K"]]:
    """The classifier of features as they are, from one of standardised features: W s and b - W s m."""
    mean, scale = (torch.from_numpy(np.asarray(part, np.float64)) for part in standardise)
    folded = weight.double() * scale
    return folded.float(), (bias.double() - folded @ mean).float()


def probe(
    config: Config,
    *,
    rates: Sequence[float] = RATES,
    steps: int = 1000,
    views: int = 0,
    features: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> ProbeResult:
    """Stores the features of the student's pretrained network where they are missing, probes them, and saves the student.

    rates: of the heads; one is chosen on the validation images. views: stored weak and strong views of each training image;
    0: images as they are evaluated. features: folder of the store; features-DIGEST in the run's folder if None.
    Raises subclasses of FastMPLError, each with one sentence for the user.
    """
    _require(config, rates, steps, views)
    folder = Path(config.run.output) / config.run.name
    config = settle_inputs(config, folder)
    with claim_folder(folder, config, "auto") as claim:
        began = time.monotonic()
        images = data_of_images(config)
        require_label_of_each_class(config, images.classes, images.truth[images.split.labelled].numpy())
        if images.validation is None and len(rates) > 1:
            raise ConfigError(
                "fastmpl probe chooses its rate on validation images: set data.validation above 0, or give one rate by "
                "--rates."
            )
        network = load_frozen(config, images)
        for remark in network.remarks:
            tell(remark)
        claim.begin(0)
        stored = features or folder / "features"
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        store_features(network, images, stored, views=views, device=device, tell=tell)
        found = _probe_stored(config, network, images, stored, rates, steps, began)
        headline = found.results.headline
        facts = FileFacts(
            images.classes,
            images.image_shape,
            images.normalisation,
            headline["network"],
            headline["description"],
            framing_of(config.data),
        )
        save_network(folder, network.whole.state_dict(), facts)
        replace_file(folder / "results.json", json.dumps(found.results._asdict(), indent=1) + "\n")
        write_status(folder, "done", steps)
    return found


def _require(config: Config, rates: Sequence[float], steps: int, views: int) -> None:
    """Raises ConfigError for what cannot be asked of a probe."""
    if not rates or min(rates) <= 0 or max(rates) > 1000:
        raise ConfigError("fastmpl probe needs --rates above 0 and at most 1000, such as --rates 0.01 0.1.")
    if steps < 1 or not 0 <= views <= 1000:
        raise ConfigError(f"--steps {steps} --views {views}: at least 1 step, and from 0 to 1000 views are needed.")


def _probe_stored(
    config: Config,
    network: FrozenNetwork,
    images: Data,
    stored: Path,
    rates: Sequence[float],
    steps: int,
    began: float,
) -> ProbeResult:
    """Trains and scores the heads, and puts the best into `network.whole`."""
    settings = config.data.model_copy(update={"features": str(stored), "store": "", "filter_store": ""})
    settings = settings.model_copy(update={"minimum_confidence": 0.0, "per_class": 0})
    data = build_data(settings, seed=config.run.seed)
    stream = data.finetune("labelled", min(config.data.batch_labelled, data.labelled_count))

    def next_batch() -> tuple[Tensor, Tensor]:
        found = stream.next()
        return found.images, found.targets

    heads = train_heads(
        next_batch,
        rates,
        features=network.features,
        classes=len(data.classes),
        steps=steps,
        weight_decay=config.student.weight_decay,
    )
    stream.close()
    nothing = [float("nan")] * len(rates)
    accuracies, losses = (nothing, nothing) if data.validation is None else _score(heads, data.validation)
    tests = [None] * len(rates) if data.test is None else _score(heads, data.test)[0]
    scores = tuple(HeadScore(*row) for row in zip(rates, accuracies, losses, tests, strict=True))
    chosen = _choose(scores) if data.validation is not None else 0
    layer = network.whole.get_submodule(network.classifier)
    assert isinstance(layer, nn.Linear)
    weight, bias = fold_head(heads.weight[chosen], heads.bias[chosen], measure_features(open_features(stored).centre))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    of: dict[Split, float] = {}
    if data.validation is not None:
        of["validation"] = scores[chosen].validation
    if (test := scores[chosen].test) is not None:
        of["test"] = test
    chose = "validation" in of
    accuracies_by_split = {str(split): accuracy for split, accuracy in of.items()}
    selected = {"step": steps, "network": "student", **accuracies_by_split} if chose else None
    description = f"linear probe of {steps:,} steps"
    description += ", its rate selected by accuracy on the validation images" if chose else ""
    headline: dict[str, Any] = {"network": "selected" if chose else "last", "step": steps, "description": description}
    headline |= accuracies_by_split
    results = Results(steps, {"student": of}, selected, None, time.monotonic() - began, headline)
    return ProbeResult(scores, chosen, results, stored)
