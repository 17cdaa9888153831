"""A run's folder as training leaves it, with made-up numbers and hostile names."""

import json
import math
import random
from pathlib import Path

import numpy as np

from fastmpl.config import Config, save
from fastmpl.report import ArmResult, Comparison
from fastmpl.telemetry.metrics import Log
from fastmpl.telemetry.metrics_file import Evaluation
from fastmpl.telemetry.predictions import FILE, LabelSample, Predictions, Record

HOSTILE = "<script>alert(1)</script>"
FOLDER = "<script>alert(1)"  # a folder's name has no slash
HEADLINE = "averaged student of step 2,750, selected by accuracy on the validation images"
STEPS, TUNING = 3000, 200


def write_sample(folder: Path) -> Path:
    """Three thousand steps of Meta Pseudo Labels on few labels, one divergence, and a fine-tuning."""
    draws = random.Random(0)
    folder.mkdir(parents=True)
    config = {"run": {"name": "digits", "steps": STEPS}, "data": {"source": "digits", "root": HOSTILE, "labels": 20}}
    save(Config.model_validate(config), folder / "config.toml")
    with Log(folder, loggers=[]) as log:
        for step in range(50, STEPS + 1, 50):
            speed = {"images_per_second": 5900 + draws.gauss(0, 90), "waiting": 0.0}
            log.train(step, step_values(step, draws), seconds=step / 12, **speed)
            if step % 250 == 0:
                evaluate(log, step, step, "train", draws)
        for step in range(STEPS + 50, STEPS + TUNING + 1, 50):
            evaluate(log, step, STEPS + 4 * (step - STEPS), "finetune", draws)
    accuracies = {
        "student": {"validation": 0.884, "test": 0.871},
        "average": {"validation": 0.902, "test": 0.889},
        "teacher": {"validation": 0.861, "test": 0.858},
    }
    results = {
        "steps": STEPS,
        "last": accuracies,
        "selected": {"step": 2750, "network": "average", "validation": 0.908, "test": 0.886},
        "finetuned": {"validation": 0.894, "test": 0.882},
        "seconds": 251.0,
        "headline": {"description": HEADLINE, "network": "selected", "step": 2750, "validation": 0.908, "test": 0.886},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / FILE).write_bytes(predictions().encode())
    return folder


def answers(count: int, classes: int, right: float, draws: np.random.Generator, pictures: int = 6) -> Predictions:
    """Answers on `count` images, of which about the share `right` is right; the first `pictures` rows have pictures."""
    truth = draws.integers(0, classes, count)
    predicted = np.where(draws.random(count) < right, truth, (truth + 1) % classes)
    confidence = draws.uniform(0.4, 1.0, count).astype(np.float32)
    names = np.array([f"test/{HOSTILE} {number}.jpg" for number in range(count)])
    drawn = draws.integers(0, 256, (pictures, 64, 64, 3)).astype(np.uint8)
    second = (predicted + 1) % classes
    return Predictions(names, truth, predicted, confidence, second, (1 - confidence) / 2, np.arange(pictures), drawn)


def predictions(classes: int = 4) -> Record:
    """The predictions of a run whose network is right on 88 of 100 images, and pseudo labels."""
    draws = np.random.default_rng(0)
    names = (HOSTILE, "a class with a name of many letters " * 3, *(f"class {n}" for n in range(2, classes)))
    splits = {"validation": answers(300, classes, 0.9, draws), "test": answers(500, classes, 0.88, draws)}
    label, truth = draws.integers(0, classes - 1, 100), draws.integers(-1, classes, 100)
    views = draws.integers(0, 256, (2, 9, 28, 28, 3)).astype(np.uint8)
    sure = draws.uniform(0.3, 1, 100).astype(np.float32)
    files = np.array([f"unlabelled/{number}.jpg" for number in range(100)])
    labels = LabelSample(files, truth, label, sure, np.arange(9), *views, "teacher", "strong", 0.6)
    return Record(names, "average, last", STEPS, splits, labels)


def step_values(step: int, draws: random.Random) -> dict[str, float]:
    """Losses fall, the feedback fades, the rate follows a cosine; one interval was skipped whole."""
    rate = 0.05 * min(step / 100, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))
    values = {
        "student_loss": 1.9 * math.exp(-step / 700) + 0.32 + draws.gauss(0, 0.02),
        "supervised_loss": 1.6 * math.exp(-step / 250) + 0.02 + abs(draws.gauss(0, 0.006)),
        "pseudo_loss": 0.7 * math.exp(-step / 900) + 0.11 + draws.gauss(0, 0.01),
        "feedback_loss": draws.gauss(0, 0.01),
        "feedback": 0.004 * math.exp(-step / 800) + draws.gauss(0, 0.0006),
        "feedback_size": 0.03 * math.exp(-step / 1200) + 0.004,
        "coverage": 0.95 - 0.7 * math.exp(-step / 500),
        "confidence": 0.97 - 0.6 * math.exp(-step / 500),
        "student_norm": 3 * math.exp(-step / 600) + 0.4 + abs(draws.gauss(0, 0.05)),
        "teacher_norm": 2 * math.exp(-step / 400) + 0.05 + abs(draws.gauss(0, 0.01)),
        "student_rate": rate,
        "teacher_rate": rate,
        "skipped": 0.0,
        "feedback_ratio": 0.2 * math.exp(-step / 900),
    }
    return values | ({"student_loss": math.nan, "student_norm": math.inf, "skipped": 3.0} if step == 700 else {})


def evaluate(log: Log, step: int, progress: int, phase: str, draws: random.Random) -> None:
    """A line for each network and split."""
    heights = {"student": (0.88, 750), "average": (0.9, 850), "teacher": (0.86, 500)}
    for network, (height, pace) in heights.items():
        for split, images in (("validation", 300), ("test", 500)):
            accuracy = height - 0.75 * math.exp(-progress / pace) + draws.gauss(0, 0.006)
            row = Evaluation(step, phase, network, split, accuracy, 1 - accuracy, images)  # type: ignore[arg-type]
            log.evaluation(row)


FEW = Comparison(
    "Few labels",
    "Digits, 20 labels, 1,400 unlabelled images, 3 seeds; the same splits and draws in every arm.",
    (
        ArmResult("supervised", (0.61, 0.648, 0.633)),
        ArmResult("UDA", (0.842, 0.871, 0.859)),
        ArmResult(
            "MPL, feedback off", (0.846, 0.868, 0.861), "the teacher learns from true labels and consistency alone"
        ),
        ArmResult("MPL, exact feedback", (0.858, 0.884, 0.872)),
    ),
    "Exact feedback adds 1.3 points [+0.6, +2.0] to the same run without it.",
    against="MPL, feedback off",
)
NOISY = Comparison(
    HOSTILE,
    "600 labels, of which 45 % are wrong, and 50 trusted ones.",
    (
        ArmResult("noisy labels", (0.55, 0.571, 0.583)),
        ArmResult("MPL, feedback off", (0.56, 0.566, 0.577)),
        ArmResult(HOSTILE + " $\\alpha$", (0.81, 0.822, 0.818), HOSTILE),
    ),
    HOSTILE,
)
