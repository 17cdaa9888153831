"""Accuracy at equal CPU seconds: what is read between evaluations, when an accuracy is reached, and legal arms."""

from pathlib import Path

import pytest

from benchmarks.experiments import time_to_accuracy as experiment
from benchmarks.experiments.cpu_clock import CountedRun, Point

POINTS = [Point(10, 2.0, 0.5), Point(20, 4.0, 0.7), Point(30, 6.0, 0.6), Point(40, 8.0, 0.8)]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1, 0.5), (2, 0.5), (3, 0.6), (4, 0.7), (5, 0.65), (8, 0.8), (9, 0.8)]
)
def test_the_accuracy_between_two_evaluations_is_on_the_line_through_them(seconds: float, expected: float) -> None:
    assert experiment.accuracy_at(POINTS, seconds) == pytest.approx(expected)


def test_an_accuracy_is_reached_where_the_student_stays_above_it() -> None:
    assert experiment.seconds_to(POINTS, 0.55) == 4.0
    assert experiment.seconds_to(POINTS, 0.65) == 8.0  # it was left once
    assert experiment.seconds_to(POINTS, 0.5) == 2.0
    assert experiment.seconds_to(POINTS, 0.9) is None


def test_every_arm_is_legal_and_named_apart(tmp_path: Path) -> None:
    for task in experiment.tasks().values():
        names = set()
        for name in experiment.ARMS:
            job = experiment.Job(task, name, 2, 5.0, tmp_path)
            config = job.arm(name, 32, 2, store="stores/x").config_of(2, tmp_path)
            names.add(config.run.name)
            assert config.data.store == ("stores/x" if name == experiment.REDUCED else "")
            assert (config.run.seed, config.run.steps) == (2, 32)
        assert len(names) == len(experiment.ARMS)


def test_scores_that_were_stored_keep_the_seconds_that_they_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(experiment, "distill", lambda *_, output, **__: calls.append(output))
    config = experiment.Job(experiment.tasks()["few"], "UDA", 0, 5.0, tmp_path).arm("UDA", 32, 2).config_of(0, tmp_path)
    first, second = (experiment.store_scores(config, tmp_path / "run", tmp_path / "store") for _ in range(2))
    assert first == second > 0
    assert calls == [tmp_path / "store"]


def test_the_tables_have_the_accuracy_at_each_mark_and_the_runs_that_reach_one(tmp_path: Path) -> None:
    task = experiment.tasks()["few"]._replace(target=0.65)
    jobs = [experiment.Job(task, "UDA", seed, 8.0, tmp_path) for seed in (0, 1)]
    found = [CountedRun(8.0, 40, POINTS), CountedRun(8.0, 40, POINTS[:3])]
    rows = experiment.rows_of(jobs, found)
    assert [row["case"] for row in rows] == [f"500 labels: {seconds} s" for seconds in (2, 2, 4, 4, 8, 8)]
    assert [row["value"] for row in rows] == [50.0, 50.0, 70.0, 70.0, 80.0, 60.0]
    (times,) = experiment.rows_of_times(jobs, found)
    assert times["runs that reach it"] == "1 of 2"
    assert times["CPU seconds, median"] == ""  # half of the runs are no median
