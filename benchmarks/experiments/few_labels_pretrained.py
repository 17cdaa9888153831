"""Few labels of new classes, from a network pretrained on others: which way of using them wins?

    python -m benchmarks.experiments.few_labels_pretrained

A perceptron learns five of Fashion-MNIST's classes at 14 pixels. The other five then have 2, 5 or 20 labels each: a
linear probe, low-rank adapters and fine-tuning learn from the labels alone; UDA and Meta Pseudo Labels, with its feedback
off and exact, use the unlabelled pictures as well. Meta Pseudo Labels is also trained on stored features, with linear
heads. Each seed of an arm takes the rate that does best on its 100 validation images; a rate at which the run diverges is
not taken. Test pictures choose nothing.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.experiments.common import CONFIGS, options, record, run_rows, tell
from benchmarks.records import Row
from fastmpl.config import load
from fastmpl.data.sources import fashion_mnist
from fastmpl.errors import DivergedError
from fastmpl.run.probe import probe
from fastmpl.run.trainer import train
from fastmpl.study.arms import Arm, Outcome, run_arms

CONFIG = CONFIGS / "fashion_mnist_500.toml"
OLD = ("T-shirt/top", "Trouser", "Pullover", "Sneaker", "Bag")  # the network is pretrained on these
NEW = ("Dress", "Coat", "Sandal", "Shirt", "Ankle boot")
A_CLASS, TESTS = 1000, 400  # pictures a class
LABELS = (2, 5, 20)  # a class
RATES = (0.01, 0.05)
VIEWS = 4  # stored of each picture, for the heads
SUPERVISED: Mapping[str, Any] = {"method.name": "supervised", "feedback.kind": "off"}
HEADS: Mapping[str, Any] = {"teacher.model": "linear", "student.model": "linear"}
OFF: Mapping[str, Any] = {"feedback.kind": "off"}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "probe": SUPERVISED,
    "adapters (lora:4)": {**SUPERVISED, "student.adapter": "lora:4"},
    "fine-tuning": SUPERVISED,
    "UDA": {**OFF, "method.name": "uda"},
    "MPL, feedback off": OFF,
    "MPL, exact": {},
    "heads on features: MPL, feedback off": {**HEADS, **OFF},
    "heads on features: MPL, exact": HEADS,
}
PROBE = "probe"


def write_pictures(folder: Path, classes: Sequence[str]) -> Path:
    """Fashion-MNIST's pictures of these classes as a folder: labelled/CLASS and test/CLASS."""
    if (folder / "complete").is_file():
        return folder
    arrays = fashion_mnist("")
    of_part = {
        "labelled": (arrays.train_images, arrays.train_labels, A_CLASS),
        "test": (arrays.test_images, arrays.test_labels, TESTS),
    }
    for part, (images, labels, count) in of_part.items():
        assert isinstance(images, np.ndarray)
        for name in classes:
            place = folder / part / name.partition("/")[0]
            place.mkdir(parents=True, exist_ok=True)
            for number in np.flatnonzero(labels == arrays.classes.index(name))[:count]:
                Image.fromarray(images[number, ..., 0]).save(place / f"{number:05d}.png")
    (folder / "complete").touch()
    return folder


def common(folder: Path, steps: int) -> dict[str, Any]:
    """A network and pictures so small that all runs fit on a CPU in half an hour."""
    networks = {
        f"{role}.{key}": value
        for role in ("teacher", "student")
        for key, value in (("model", "perceptron"), ("depth", 4), ("width", 128), ("warmup", 20))
    }
    return {
        **networks,
        "run.steps": steps,
        "run.evaluate_every": steps,
        "run.checkpoint_every": steps,
        "data.source": "folder",
        "data.root": str(folder),
        "data.image_size": 14,
        "data.rand_augment": (0, 0),
        "data.batch_unlabelled": 64,
        "student.average": 0.98,
        "uda.ramp": steps // 3,
    }


def pretrain(output: Path, steps: int) -> Path:
    """The run that learns the old classes; a finished one is kept."""
    settings = {**common(write_pictures(output / "old", OLD), steps), **SUPERVISED}
    settings |= {"data.labels": 0, "data.batch_labelled": 128, "data.validation": 100, "student.average": 0.99}
    settings |= {"run.output": str(output), "run.name": "pretrained", "student.warmup": 100}
    train(load(CONFIG, settings), quiet=True, report=False)
    return output / "pretrained"


def arms_of(labels: int, network: Path, pictures: Path, features: Path, steps: int) -> list[Arm]:
    """The arms of one number of labels a class, each at every rate; the probe has rates of its own."""
    data = {**common(pictures, steps), "data.labels": 5 * labels, "data.batch_labelled": min(32, 5 * labels)}
    data |= {"data.validation": 100}
    made = []
    for name, changes in ARMS.items():
        both = changes.get("method.name", "mpl") == "mpl"
        start = {f"{role}.pretrained": str(network) for role in (("student", "teacher") if both else ("student",))}
        start = {"data.features": str(features)} if changes.get("student.model") == "linear" else start
        if name == PROBE:
            made.append(Arm(f"{labels}-probe", CONFIG, {**data, **start, **changes}, "probe"))
            continue
        for rate in RATES:
            rates = {"student.lr": rate, "teacher.lr": rate}
            made.append(Arm(arm_name(labels, name, rate), CONFIG, {**data, **start, **changes, **rates}))
    return made


def arm_name(labels: int, name: str, rate: float) -> str:
    words = "".join(letter if letter.isalnum() else "-" for letter in name)
    return f"{labels}-{words}-{rate:g}"


def choose_rates(of_rates: Mapping[float, Sequence[Outcome | None]]) -> list[tuple[float, Outcome]]:
    """Of each seed, the rate whose last average has the best validation accuracy, and its outcome; the lower of equals.

    None stands for a run that diverged.
    """
    chosen = []
    for of_seed in zip(*of_rates.values(), strict=True):
        found = [(rate, outcome) for rate, outcome in zip(of_rates, of_seed, strict=True) if outcome is not None]
        chosen.append(max(found, key=lambda each: (each[1]["last"]["average"]["validation"], -each[0])))
    return chosen


def read_outcomes(arm: Arm, seeds: int, folder: Path) -> list[Outcome | None]:
    """The results of an arm's runs; None for one that did not end."""
    files = [folder / f"{arm.name}-{seed}" / "results.json" for seed in range(seeds)]
    return [json.loads(file.read_text()) if file.is_file() else None for file in files]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options("few_labels_pretrained", __doc__.splitlines()[0], steps=150)
    parser.add_argument("--pretraining", type=int, default=1000, help="steps of the network on the old classes")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    network = pretrain(asked.output, asked.pretraining)
    pictures, features = write_pictures(asked.output / "new", NEW), asked.output / "features"
    settings = {**common(pictures, asked.steps), **SUPERVISED, "student.pretrained": str(network)}
    settings |= {"data.validation": 100, "run.output": str(asked.output), "run.name": "features-of-views"}
    probe(load(CONFIG, settings), features=features, views=VIEWS, steps=100, tell=tell)
    arms = [arm for labels in LABELS for arm in arms_of(labels, network, pictures, features, asked.steps)]
    try:
        run_arms(arms, asked.seeds, asked.output, tell, asked.jobs)
    except DivergedError as error:  # raised after all other runs have ended
        tell(str(error))
    outcomes = {arm.name: read_outcomes(arm, asked.seeds, asked.output) for arm in arms}
    rows: list[Row] = []
    for labels in LABELS:
        case = f"{labels} labels a class"
        rows += run_rows(case, PROBE, [outcome for outcome in outcomes[f"{labels}-probe"] if outcome is not None])
        for name in ARMS:
            if name != PROBE:
                found = choose_rates({rate: outcomes[arm_name(labels, name, rate)] for rate in RATES})
                made = run_rows(case, name, [outcome for _, outcome in found])
                rows += [{**each, "rate": rate} for each, (rate, _) in zip(made, found, strict=True)]
    diverged = sum(outcome is None for of_seeds in outcomes.values() for outcome in of_seeds)
    record(asked, rows, baseline=PROBE, pretraining=asked.pretraining, diverged=diverged)
    return 0


if __name__ == "__main__":
    sys.exit(main())
