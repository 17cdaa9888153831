"""A run whose updates fail ends, says so, and leaves a step that fails again when it is repeated."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.cli import main
from fastmpl.commands.replay import describe_step
from fastmpl.errors import DivergedError
from fastmpl.run import checkpoint, training
from fastmpl.run.folder import read_status
from fastmpl.run.replay import replay
from fastmpl.telemetry.skip_window import AT_MOST, STEPS, SkipWindow
from tests.run.short_runs import short_config, stop_after, train_quietly


def test_skipped_updates_are_counted_over_the_last_hundred_steps() -> None:
    window = SkipWindow()
    for step in range(3 * STEPS):
        window.add(torch.tensor(float(step % 10 == 0)))
    assert window.read_worst() == STEPS // 10
    for _ in range(5):
        window.add(torch.tensor(2.0))
    assert window.read_worst() == STEPS // 10 + 10 - 1  # one old one has left
    window.add(torch.tensor(0.0))
    assert window.read_worst() < STEPS // 10 + 10


def spoil_every(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Images of every n-th step are not a number: the student's loss is none."""
    original, asked = training.Training._next_batch, 0

    def spoilt(run: training.Training) -> Any:
        nonlocal asked
        asked += 1
        batch = original(run)
        return batch._replace(strong=batch.strong * torch.nan) if asked % nth == 0 else batch

    monkeypatch.setattr(training.Training, "_next_batch", spoilt)


@pytest.mark.parametrize("log_every", [1, 10, 1000])
def test_a_run_ends_whatever_the_length_of_its_lines(
    log_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_every(monkeypatch, 2)
    config = short_config(tmp_path, run__steps=40, run__log_every=log_every, run__evaluate_every=10)
    with pytest.raises(DivergedError, match=f"updates of {STEPS} steps were not finite .more than {AT_MOST}"):
        train_quietly(config)
    assert read_status(tmp_path / "small")["state"] == "failed"


def test_a_tenth_of_the_steps_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_every(monkeypatch, 20)
    assert train_quietly(short_config(tmp_path, run__steps=40)).steps == 40


def test_skipped_updates_before_an_interruption_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_every(monkeypatch, 1)
    stop_after(3, short_config(tmp_path, run__steps=40), monkeypatch)
    found = checkpoint.read(tmp_path / "small/checkpoints/step-3")
    assert float(found.tensors["recent_skips"].sum()) > 0


def test_a_run_that_diverged_leaves_a_step_that_fails_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = short_config(
        tmp_path,
        student__lr=1000.0,
        student__weight_decay=1.0,
        teacher__lr=1000.0,
        run__steps=60,
        run__checkpoint_every=5,
    )
    with pytest.raises(DivergedError) as raised:
        train_quietly(config)
    (captured,) = (tmp_path / "small/nan").iterdir()
    assert f"fastmpl replay {captured}" in str(raised.value)
    before = {path: path.read_bytes() for path in (tmp_path / "small").rglob("*") if path.is_file()}
    found = replay(captured)
    assert found.metrics["skipped"] > 0
    listed = checkpoint.read(captured).facts["failing_batch"]
    assert found.images["labelled"] == tuple(map(str, listed["labelled"]))
    assert main(["replay", str(captured)]) == 0
    assert "updates were skipped; not finite: " in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (tmp_path / "small").rglob("*") if path.is_file()}


def test_a_step_between_two_that_credit_is_not_said_to_be_not_finite(tmp_path: Path) -> None:
    train_quietly(short_config(tmp_path, run__steps=6, run__checkpoint_every=1, feedback__every=3, system__graph="off"))
    between, crediting = ("\n".join(describe_step(tmp_path / f"small/checkpoints/step-{step}")) for step in (3, 5))
    assert "not finite" not in between + crediting
    assert "this step credits no labels: one in 3 does" in between
    assert " feedback " not in between
    assert "credits no labels" not in crediting
    assert " feedback_ratio " in crediting


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "a/b/step-1")]) == 2
    assert "is not RUN/nan/step-N" in capsys.readouterr().err
