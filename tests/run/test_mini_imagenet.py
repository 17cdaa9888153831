"""The ImageNet configurations, run from end to end on a generated mini-ImageNet in three storages, with small networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to train on encoded images")

from fastmpl.commands.distill import TeacherSource, distill
from fastmpl.commands.evaluate import evaluate
from fastmpl.commands.predict import predict
from fastmpl.config import Config, load
from fastmpl.run import checkpoint
from fastmpl.run.closing import Results
from fastmpl.run.trainer import train
from tests import mini_imagenet

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"
STORAGES = ("folder", "webdataset", "tfrecord")
SMALL: dict[str, Any] = {
    "run.steps": 4, "run.evaluate_every": 4, "run.log_every": 2, "run.checkpoint_every": 2,
    "data.image_size": 48, "data.batch_labelled": 8, "data.batch_unlabelled": 16,
    "student.model": "conv", "student.width": 8, "finetune.steps": 1, "finetune.batch": 8, "system.threads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """300 pictures of ImageNet's sizes."""
    root = tmp_path_factory.mktemp("mini")
    made = list(mini_imagenet.pictures(15, 100, 5))
    return {storage: mini_imagenet.WRITERS[storage](root / storage, iter(made)) for storage in STORAGES}


def mini_config(name: str, root: Path, source: str, runs: Path, **more: Any) -> Config:
    keys = {"run.output": str(runs), "data.root": str(root), "data.source": source, **SMALL}
    return load(CONFIGS / f"{name}.toml", keys | {key.replace("__", "."): value for key, value in more.items()})


def assert_finished(results: Results, config: Config) -> None:
    """The run went to its end, with numbers throughout."""
    folder = Path(config.run.output) / config.run.name
    assert results.steps == config.run.steps + config.finetune.steps
    assert json.loads((folder / "results.json").read_text())["last"]["student"]["test"] >= 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [value for line in lines for key, value in line.items() if "loss" in key and isinstance(value, float)]
    assert losses
    assert np.isfinite(losses).all()


def test_ten_percent_trains_from_a_folder_and_its_student_is_used(roots: dict[str, Path], tmp_path: Path) -> None:
    asked = mini_config("imagenet_10pct", roots["folder"], "folder", tmp_path, teacher__model="conv", teacher__width=8)
    assert_finished(train(asked, quiet=True), asked)
    run = tmp_path / asked.run.name
    judged = evaluate(run).sets
    test = next(found for found in judged if found.name == "test")
    assert test.confusion.sum() == 50
    pictures = sorted((roots["folder"] / "test").rglob("*.JPEG"))
    said = [mini_imagenet.CLASSES.index(prediction.label or "") for prediction in predict(run, pictures)]
    truth = np.repeat(np.arange(10), 5)
    # the same square of a picture is shown by both, resized once or twice
    assert abs((np.array(said) == truth).sum() - np.trace(test.confusion)) <= 3


def test_reduced_mpl_trains_from_tars_on_a_large_teacher_s_store(roots: dict[str, Path], tmp_path: Path) -> None:
    def asked(**more: Any) -> Config:
        keys = {"teacher__width": 16, "data__store": str(tmp_path / "store"), **more}
        return mini_config("imagenet_reduced_b7", roots["webdataset"], "webdataset", tmp_path, **keys)

    teacher = asked(run__name="teacher", method__name="supervised", data__store="", feedback__kind="off")
    assert_finished(train(teacher, quiet=True), teacher)
    distill(asked(), TeacherSource(teacher=str(tmp_path / "teacher")), tell=lambda said: None)
    assert_finished(train(asked(), quiet=True), asked())


def test_the_example_trains_from_tfrecord_while_its_images_grow_and_continues_bit_for_bit(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    def asked(name: str) -> Config:
        return mini_config("imagenet_folder_example", roots["tfrecord"], "tfrecord", tmp_path, run__name=name,
                      data__image_size=64, data__validation=20, data__start_size=32, data__grow_steps=3,
                      teacher__model="conv", teacher__width=8, run__keep=9)  # fmt: skip

    assert_finished(train(asked("whole"), quiet=True), asked("whole"))
    train(asked("part"), resume=str(tmp_path / "whole/checkpoints/step-2"), quiet=True)
    a, b = (checkpoint.read(tmp_path / name / "checkpoints/step-5") for name in ("whole", "part"))
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
