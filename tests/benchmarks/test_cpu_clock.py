"""Runs whose CPU seconds are counted, and the experiment that sets them beside accuracies."""

import time
from pathlib import Path

import pytest

from benchmarks.experiment_tables import each_arm
from benchmarks.experiments import cpu_clock, feedback_every
from benchmarks.records import Record
from fastmpl.run.callbacks import StepDone
from fastmpl.telemetry.metrics_file import Evaluation
from tests.run.short_runs import short_config


def test_the_clock_counts_steps_and_leaves_out_the_start_and_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = cpu_clock.CpuClock(), 100.0
    monkeypatch.setattr(time, "process_time", lambda: now)
    for step, after in enumerate((30, 1, 2), start=1):
        now += after
        clock.count_step(StepDone(step, 4))
    now += 50  # an evaluation
    clock.note_accuracy(Evaluation(3, "train", "student", "test", 0.5, 1.0, 10))
    now += 4
    clock.count_step(StepDone(4, 4))
    assert (clock.seconds, clock.steps) == (7.0, 3)
    assert clock.points == {"student": [(3, 3.0, 0.5)]}


def test_a_run_that_was_counted_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = short_config(tmp_path, run__steps=4, student__model="perceptron", teacher__model="perceptron")
    first = cpu_clock.train_counted(config)
    assert first.seconds > 0
    assert [point.step for point in first.points] == [4]
    monkeypatch.setattr(cpu_clock.trainer, "train", None)
    assert cpu_clock.train_counted(config) == first


def test_a_table_has_the_median_of_the_seconds_and_of_their_ratios_by_seed() -> None:
    seconds = {"every 1": (10.0, 20.0, 40.0), "off": (5.0, 10.0, 10.0)}
    rows = [
        {"case": "a", "arm": arm, "seed": seed, "value": 80.0, "cpu_seconds": value}
        for arm, values in seconds.items()
        for seed, value in enumerate(values)
    ]
    lines = each_arm(Record("x", "experiment", rows, {"baseline": "every 1"})).splitlines()  # type: ignore[arg-type]
    assert lines[0].endswith("| CPU seconds | of every 1 |")
    assert lines[2].endswith("| 20.0 | 1.00x |")
    assert lines[3].endswith("| 10.0 | 0.50x |")


def test_the_arms_of_feedback_every_differ_in_that_key_alone(tmp_path: Path) -> None:
    for task in feedback_every.tasks_of(9, tmp_path / "stores"):
        made = {name: arm.config_of(3, tmp_path) for name, arm in feedback_every.arms_of(task).items()}
        assert [config.feedback.every for config in made.values()] == [1, 2, 4, 8, 1]
        assert made["off"].feedback.kind == "off"
        assert len({config.run.name for config in made.values()}) == 5
        first = made["every 1"]
        for name, config in made.items():
            alike = {section: getattr(config, section) for section in ("data", "method", "student", "teacher", "uda")}
            assert all(value == getattr(first, section) for section, value in alike.items())
            assert name == "off" or config.feedback.model_copy(update={"every": 1}) == first.feedback
