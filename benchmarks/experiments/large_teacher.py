"""A large teacher with a habit of its own: a perceptron trained on Fashion-MNIST with labels that are not ours.

exchanged     six classes exchanged in pairs (0 and 1, 2 and 3, 5 and 7): every distribution is recoverable
many_to_one   three classes named as another (4 as 2, 6 as 0, 9 as 7): what is lost must be guessed from soft scores
prior_shift   classes 0 to 4 seen a twentieth as often, and scores sharpened by 3: biased and over-confident
none          true labels

    python -m benchmarks.experiments.large_teacher exchanged --output runs/probabilities.npy

writes such a teacher's probabilities of all training images: a file as any model could have written it.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.experiments.common import CONFIGS
from fastmpl.commands.distill import TeacherSource, distill
from fastmpl.config import Config, load
from fastmpl.data import draws
from fastmpl.data.build import Data
from fastmpl.data.build import build as build_data
from fastmpl.data.stores.store import HEADER
from fastmpl.models import build

TRAINED_ON, BATCH, RATE, STEPS = 10_000, 128, 1e-3, 600
BIASES = ("exchanged", "many_to_one", "prior_shift", "none")
_RENAMED = {
    "exchanged": {0: 1, 1: 0, 2: 3, 3: 2, 5: 7, 7: 5},
    "many_to_one": {4: 2, 6: 0, 9: 7},
}
SHARPENED = {"prior_shift": 3.0}


def stored_teacher(config: Config, bias: str, folder: Path, *, steps: int, tell: Callable[[str], None]) -> float:
    """Trains the teacher of `config`'s seed and stores its distributions in `folder`; gives its test accuracy (a share).

    What is there already is kept.
    """
    note = folder / "teacher.json"
    if note.is_file() and (folder / HEADER).is_file():
        return float(json.loads(note.read_text())["test"])
    rows, test = probabilities(config, bias, steps)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.npy")
    np.save(file, rows)
    distill(config, TeacherSource(probabilities=file), output=folder, tell=tell)
    file.unlink()
    note.write_text(json.dumps({"test": test}) + "\n")
    return test


def probabilities(config: Config, bias: str, steps: int) -> tuple[NDArray[np.float32], float]:
    """The distributions [N, K] of a teacher of `config`'s seed over all training images, and its test accuracy."""
    data = build_data(config.data.model_copy(update={"store": ""}), seed=config.run.seed)
    assert data.test is not None
    infer = _train(data, bias, config.run.seed, steps)
    parts = torch.split(torch.arange(len(data.truth)), 5000)
    rows = np.concatenate([infer(data.examples(part.numpy()).images) for part in parts])
    return rows, float((infer(data.test.images).argmax(1) == data.test.labels.numpy()).mean())


def _train(data: Data, bias: str, seed: int, steps: int) -> Callable[[torch.Tensor], NDArray[np.float32]]:
    """784-256-256-10, Adam, on 10,000 of the run's images with the biased labels: a function images -> probabilities."""
    held = data.examples(_members(data, bias, seed))
    renamed = torch.arange(len(data.classes))
    for old, new in _RENAMED.get(bias, {}).items():
        renamed[old] = new
    labels = renamed[held.labels]
    network = build(
        "perceptron",
        classes=len(data.classes),
        image_shape=data.image_shape,
        dropout=0.0,
        norm="batch",
        width=256,
        depth=3,
        seed=1000 + seed,
    )
    optimiser = torch.optim.Adam(network.parameters(), RATE, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        loss = F.cross_entropy(network(held.images[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    @torch.no_grad()
    def infer(images: torch.Tensor) -> NDArray[np.float32]:
        return np.asarray(torch.softmax(SHARPENED.get(bias, 1.0) * network(images), -1).numpy())

    return infer


def _members(data: Data, bias: str, seed: int) -> NDArray[np.int64]:
    """The images that the teacher is trained on, of those that the run has."""
    images = np.concatenate([data.split.labelled, data.split.unlabelled])
    order = images[draws.permutation(draws.key(seed, draws.Purpose.EXPERIMENT), len(images))]
    if bias == "prior_shift":
        few = data.truth.numpy()[order] < 5
        order = order[~few | (np.cumsum(few) <= TRAINED_ON // 40)]
    return order[:TRAINED_ON]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bias", choices=BIASES)
    parser.add_argument("--output", type=Path, default=Path("runs/probabilities.npy"))
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    rows, test = probabilities(load(CONFIGS / "fashion_mnist_reduced.toml"), asked.bias, asked.steps)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    np.save(asked.output, rows)
    print(f"{asked.output}: {len(rows):,} rows; this teacher is right about {100 * test:.1f} % of the test images.")


if __name__ == "__main__":
    main()
