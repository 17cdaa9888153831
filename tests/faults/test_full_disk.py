"""A disk that is full: before the first step, at a periodic save, and at the last one; on a real file system."""

from pathlib import Path
from typing import Any

import pytest

from fastmpl.errors import StorageError
from fastmpl.run import checkpoint, trainer, training
from fastmpl.run.folder import read_status
from tests.faults.full_disk import fill, small_disk
from tests.run.short_runs import short_config, train_quietly


def wide(folder: Path, **changes: Any) -> Any:
    """A run whose checkpoints have about a megabyte."""
    return short_config(folder, **({"student__width": 96, "teacher__width": 96, "run__keep": 2} | changes))


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        with pytest.raises(StorageError, match=r"needs .* MB for 3 checkpoints of .* MB, and the disk has"):
            train_quietly(wide(disk, run__checkpoint_every=10))
        assert not (disk / "small").exists()


def test_a_disk_that_is_full_at_the_start_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk)
        with pytest.raises(StorageError) as raised:
            train_quietly(short_config(disk))
        assert "\n" not in str(raised.value)
        assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("last", [False, True], ids=["periodic", "last"])
def test_a_disk_that_fills_up_while_training(
    last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It costs a periodic save, and ends the run at the last one: STATUS then says so, and the run can be continued."""
    with small_disk(tmp_path / "disk", "24m") as disk:
        fills_at = 18 if last else 8
        original = training.Training.take_step
        filler: list[Path] = []

        def fill_up(run: training.Training, phase: Any) -> Any:
            if run.step == fills_at:
                filler.append(fill(disk))
            if run.step == fills_at + 10:
                filler[0].unlink()
            return original(run, phase)

        config = wide(disk, run__checkpoint_every=5 if not last else 10, run__log_every=1)
        with monkeypatch.context() as patch:
            patch.setattr(training.Training, "take_step", fill_up)
            if last:
                with pytest.raises(StorageError, match=r"needs .* MB and the disk has"):
                    train_quietly(config)
            else:
                trainer.train(config, report=False)
        if last:
            assert (read_status(disk / "small")["state"], checkpoint.steps(disk / "small/checkpoints")) == (
                "failed",
                [10],
            )
            filler[0].unlink()
            train_quietly(config)
        else:
            output = capsys.readouterr().out
            assert "Training goes on without this checkpoint" in output
            assert "lines are missing" in output
        assert read_status(disk / "small")["state"] == "done"
        whole = train_quietly(wide(tmp_path / "whole", run__checkpoint_every=5 if not last else 10))
        found, expected = (checkpoint.read(f / "small/checkpoints/step-20") for f in (disk, tmp_path / "whole"))
        assert whole.steps == 20
        assert all((found.tensors[n] == v).all() for n, v in expected.tensors.items() if n != "meter")
