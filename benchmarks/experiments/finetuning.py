"""Fine-tuning of finished runs on their trusted images, over rates and lengths, so that both can be chosen by validation.

One pass per rate: a length is a moment of it. What was found is kept in the run's folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmpl.config import Config
from fastmpl.data.build import build as build_data
from fastmpl.learners.plain import PlainLearner
from fastmpl.run.classifier import load_network
from fastmpl.run.finetune import make_batches, make_finetune_step
from fastmpl.run.scores import Scorer

RATES = (0.01, 0.03)
LENGTHS = (50, 200, 800)
CPU = torch.device("cpu")


class Tuned(NamedTuple):
    """A student after fine-tuning: shares of the validation and of the test images."""

    rate: float
    steps: int
    validation: float
    test: float


class FinetuningTask(NamedTuple):
    """A finished run and the grid to fine-tune it over."""

    config: Config
    rates: Sequence[float] = RATES
    lengths: Sequence[int] = LENGTHS


def finetune_over_grid(task: FinetuningTask) -> list[Tuned]:
    """Every rate and length, from the run's student; read again where it was done."""
    config, rates, lengths = task
    folder = Path(config.run.output) / config.run.name
    kept = folder / f"finetuning-{'-'.join(map(str, (*rates, *lengths)))}.json"
    if kept.is_file() and kept.stat().st_mtime >= (folder / "results.json").stat().st_mtime:
        return [Tuned(*values) for values in json.loads(kept.read_text())]
    torch.set_num_threads(1)
    data = build_data(config.data, seed=config.run.seed)
    judge = Scorer(data, CPU)
    found = []
    for rate in rates:
        shapes: dict[str, Any] = {"classes": len(data.classes), "image_shape": data.image_shape}
        module = load_network(folder, **shapes, network="average" if config.student.average else "last")
        settings = {"lr": rate, "warmup": 0, "wait": 0, "schedule": "constant"}
        learner = PlainLearner(module, config.student.model_copy(update=settings), steps=max(lengths))
        step = make_finetune_step(learner, config, CPU)
        stream = data.finetune("trusted", min(data.trusted_count, config.data.batch_labelled))
        following = make_batches(stream, CPU, lambda replaced: None)
        for number in range(1, max(lengths) + 1):
            step(following())
            if number in lengths:
                scores = judge.scores(learner.infer)
                found.append(Tuned(rate, number, scores["validation"].accuracy, scores["test"].accuracy))
    kept.write_text(json.dumps(found) + "\n")
    return found
