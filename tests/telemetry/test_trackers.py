"""Trackers get the numbers of a run over its steps, and none of them can stop or delay it."""

import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fastmpl.telemetry.loggers import Line, Loggers, TensorBoard
from fastmpl.telemetry.trackers import Background, MLflow, WandB, open_trackers
from tests.run.short_runs import short_config, train_quietly

TRAIN = {"kind": "train", "step": 4, "student_loss": 0.5, "teacher_loss": None}
SCORE = {"kind": "evaluation", "step": 4, "phase": "train", "network": "average", "split": "test"}
SCORE |= {"accuracy": 0.75, "loss": 0.3, "images": 10}
FACTS = {"student.lr": 0.1, "data.root": ""}


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recording stand-in for the package: what `init` was asked for, and what was logged."""
    heard: dict[str, Any] = {"lines": [], "finished": 0}

    class Run:
        def define_metric(self, name: str, step_metric: str) -> None:
            heard["over"] = step_metric

        def log(self, values: dict[str, float]) -> None:
            heard["lines"].append(values)

        def finish(self) -> None:
            heard["finished"] += 1

    def init(**asked: Any) -> Run:
        heard["asked"] = asked
        return Run()

    module = ModuleType("wandb")
    module.__dict__.update(init=init, Settings=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return heard


def test_wandb_gets_the_numbers_and_the_configuration_offline(wandb: dict[str, Any], tmp_path: Path) -> None:
    (logger,) = open_trackers("wandb", tmp_path, "digits", FACTS)
    for line in (TRAIN, SCORE):
        logger.write(line)
    logger.close()
    assert wandb["lines"] == [
        {"step": 4, "train/student_loss": 0.5},
        {"step": 4, "test/average_accuracy": 0.75, "test/average_loss": 0.3},
    ]
    assert (wandb["asked"]["mode"], wandb["asked"]["config"], wandb["asked"]["name"]) == ("offline", FACTS, "digits")
    assert (wandb["over"], wandb["finished"]) == ("step", 1)


def test_a_run_writes_to_its_trackers(wandb: dict[str, Any], tmp_path: Path) -> None:
    train_quietly(short_config(tmp_path, run__trackers="wandb", run__steps=4, run__evaluate_every=4, run__log_every=2))
    assert {line["step"] for line in wandb["lines"]} == {2, 4}
    assert any("test/average_accuracy" in line for line in wandb["lines"])
    assert wandb["asked"]["config"]["run.trackers"] == "wandb"
    assert wandb["finished"] == 1
    assert not (tmp_path / "small" / "tensorboard").exists()


class Failing:
    """Fails with the second line."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, line: Line) -> None:
        self.lines += 1
        if self.lines == 2:
            raise ConnectionError("no server")

    def resume(self, step: int) -> None: ...

    def close(self) -> None: ...


class Hanging(Failing):
    """Waits for a server that never answers."""

    def __init__(self) -> None:
        self.answered = threading.Event()

    def write(self, line: Line) -> None:
        self.answered.wait()


def test_a_tracker_that_fails_is_said_once_and_left_out() -> None:
    said: list[str] = []
    failing = Failing()
    loggers = Loggers([Background(failing)], said.append)
    for _ in range(20):
        loggers.write(TRAIN)
        time.sleep(0.01)
    loggers.close()
    assert said == ["Failing failed and is switched off, training goes on: no server."]
    assert failing.lines == 2


def test_a_tracker_that_hangs_delays_neither_a_line_nor_the_end() -> None:
    said: list[str] = []
    hanging = Hanging()
    loggers = Loggers([Background(hanging, patience=0.2, waiting=5)], said.append)
    start = time.monotonic()
    for _ in range(20):
        loggers.write(TRAIN)
    loggers.close()
    assert time.monotonic() - start < 5
    assert said == ["Hanging failed and is switched off, training goes on: it does not keep up with the run."]

    late = Loggers([Background(hanging, patience=0.2)], said.append)
    late.write(TRAIN)
    late.close()
    assert "did not finish within" in said[-1]
    hanging.answered.set()


def test_a_package_that_is_missing_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    said: list[str] = []
    loggers = Loggers(open_trackers("mlflow", tmp_path, "digits", FACTS), said.append)
    loggers.write(TRAIN)
    loggers.close()
    (sentence,) = said
    assert sentence.startswith("MLflow failed and is switched off, training goes on")


def test_tensorboard_is_the_default_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert [type(one) for one in open_trackers("auto", tmp_path, "digits", {})] == [TensorBoard]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert open_trackers("auto", tmp_path, "digits", {}) == []
    assert open_trackers("", tmp_path, "digits", {}) == []
    assert [type(one) for one in open_trackers("tensorboard,wandb", tmp_path, "d", {})] == [TensorBoard, Background]


def test_the_real_wandb_writes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install fastmpl[trackers]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandB(tmp_path, "digits", FACTS)
    logger.write(TRAIN)
    logger.write(SCORE)
    logger.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_the_real_mlflow_writes_a_run_into_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="pip install fastmpl[trackers]")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logger = MLflow(tmp_path, "digits", FACTS)
    logger.write(TRAIN)
    logger.write(SCORE)
    logger.close()
    (found,) = tmp_path.glob("mlflow/*/*/metrics/test/average_accuracy")
    assert found.read_text().split()[1:] == ["0.75", "4"]
