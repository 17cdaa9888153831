"""The trainer does not wait for images that are made while its steps run, and says how long it waits where it does."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to train on encoded images")

from fastmpl.config import Config, load
from fastmpl.data.batch import Batch
from fastmpl.data.streaming.encoded_pipeline import EncodedStream
from fastmpl.data.view_stream import Views
from fastmpl.run import trainer, training
from fastmpl.step.step_metrics import zero_metrics
from fastmpl.telemetry.metrics_file import read_lines
from fastmpl.telemetry.progress import State, facts
from tests import mini_imagenet

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
STEPS = 6


@pytest.fixture
def config(tmp_path: Path) -> Config:
    root = mini_imagenet.write_lists(tmp_path / "lists", mini_imagenet.pictures(2, 24, 0, size=(40, 30)))
    return load(
        CONFIGS / "imagenet_10pct.toml",
        {
            "run.output": str(tmp_path), "run.name": "waits", "run.steps": STEPS, "run.log_every": STEPS,
            "run.evaluate_every": STEPS, "run.checkpoint_every": STEPS, "data.source": "file_list", "data.labels": 0,
            "data.root": str(root), "data.validation": 0, "data.image_size": 16, "data.batch_labelled": 4,
            "data.batch_unlabelled": 8, "student.model": "conv", "student.width": 8, "teacher.model": "conv",
            "teacher.width": 8, "finetune.steps": 0, "system.threads": 1,
        },
    )  # fmt: skip


def steps(monkeypatch: pytest.MonkeyPatch, step: Callable[[], None]) -> None:
    """Lets the trainer's steps be `step`."""

    def choose_execution(trainee: Any, *_: object, **__: object) -> Callable[[Batch], None]:
        def taken(batch: Batch) -> None:
            step()
            trainee.step.watch(zero_metrics(batch.labelled))

        return taken

    monkeypatch.setattr(training, "choose_execution", choose_execution)


def test_the_next_batches_are_made_while_a_step_is_running(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    made = taken = 0
    honest = EncodedStream.next

    def counted(stream: EncodedStream) -> Views:
        nonlocal made
        views = honest(stream)
        made += views.strong is not None  # once a batch
        return views

    def step() -> None:
        nonlocal taken
        taken += 1
        patience = time.monotonic() + 20
        while made < taken + config.data.prefetch:  # nobody asks for them: the trainer is here
            assert time.monotonic() < patience
            time.sleep(0.005)

    monkeypatch.setattr(EncodedStream, "next", counted)
    steps(monkeypatch, step)
    trainer.train(config, quiet=True, report=False)
    assert taken == STEPS


def test_the_time_waited_is_in_the_record_and_on_the_screen_where_it_matters(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = training.Training._next_batch

    def late(training: training.Training) -> Batch:
        time.sleep(0.1)
        return honest(training)

    monkeypatch.setattr(training.Training, "_next_batch", late)
    steps(monkeypatch, lambda: time.sleep(0.05))
    trainer.train(config, quiet=True, report=False)
    (line,) = read_lines(Path(config.run.output) / "waits")
    waited, worked = line["waiting"] * line["seconds"], (1 - line["waiting"]) * line["seconds"]
    assert waited >= STEPS * 0.1
    assert worked >= STEPS * 0.05
    shown = [fact.label for share in (0.01, 0.25) for fact in facts(State("run", 9, 1, {"waiting": share}), 0.0)]
    assert shown.count("waits for data") == 1
