"""What a run continues from, what it refuses to continue from, and what a start that fails leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.commands.evaluate import evaluate
from fastmpl.config import Config
from fastmpl.data.errors import DataError
from fastmpl.errors import ConfigError, StorageError
from fastmpl.run import checkpoint, trainer, training
from fastmpl.run.classifier import load_classifier
from fastmpl.run.folder import lock_folder, read_status
from tests.run.short_runs import short_config, stop_after, train_quietly, untimed_lines


def states(folder: Path) -> dict[str, bytes]:
    """The content of every file but those that hold a process or a time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def saving_often(folder: Path, **changes: Any) -> Config:
    return short_config(folder, **({"run__checkpoint_every": 5, "run__log_every": 5} | changes))


def test_a_run_that_goes_back_keeps_what_it_saves_and_never_meets_the_abandoned_future(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, back = saving_often(tmp_path / "whole"), saving_often(tmp_path / "back", run__keep=2)
    for config in (whole, back):
        train_quietly(config)
    run = tmp_path / "back/small"
    earlier = run / "checkpoints/step-15"
    with monkeypatch.context() as patch:
        # stops in the second step after going back
        train = lambda config: trainer.train(config, resume=str(earlier), quiet=True, report=False)  # noqa: E731
        patch.setattr("tests.run.short_runs.train_quietly", train)
        stop_after(2, back, monkeypatch)
    assert checkpoint.steps(run / "checkpoints")[0] == 17
    assert read_status(run)["step"] == 17
    assert (run / "abandoned-1/checkpoints/step-20").is_dir()
    assert (run / "abandoned-1/student.safetensors").is_file()
    assert not (run / "student.safetensors").exists()
    train_quietly(back)
    a, b = (checkpoint.read(tmp_path / name / "small/checkpoints/step-20") for name in ("whole", "back"))
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert untimed_lines(tmp_path / "whole/small") == untimed_lines(run)


@pytest.mark.parametrize(
    ("changes", "step", "words"),
    [
        ({"student__model": "conv", "student__width": 8}, 10, "does not fit this configuration: student/"),
        ({"student__optimiser": "adamw", "student__lr": 1e-3}, 10, "Set model, optimiser, average and engine"),
        ({"student__average": 0.0}, 10, "student/average.* is of shape .* and absent here"),
        ({"run__steps": 4}, 10, "is of step 10, and this run has 4 steps"),
        ({"run__steps": 4, "finetune__steps": 9, "finetune__batch": 16}, 10, "step 10 in the main phase"),
    ],
    ids=["network", "optimiser", "average", "fewer steps", "phase"],
)
def test_a_checkpoint_of_another_configuration_is_refused_and_leaves_no_folder(
    changes: dict[str, Any], step: int, words: str, tmp_path: Path
) -> None:
    train_quietly(saving_often(tmp_path / "one"))
    path = tmp_path / f"one/small/checkpoints/step-{step}"
    with pytest.raises(ConfigError, match=words):
        train_quietly(saving_often(tmp_path / "two", **changes), resume=str(path))
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("name", ["newest", "small/checkpoints", "small/checkpoints/step-7"])
def test_a_path_that_is_no_checkpoint_is_refused_and_a_finished_run_stays_as_it_was(name: str, tmp_path: Path) -> None:
    train_quietly(saving_often(tmp_path))
    before = states(tmp_path / "small")
    with pytest.raises(ConfigError, match=r"is no checkpoint.*Give auto, never, or a folder such as"):
        train_quietly(saving_often(tmp_path, run__log_every=1), resume=str(tmp_path / name))
    assert states(tmp_path / "small") == before


def test_the_status_of_a_continued_run_says_the_step_that_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(7, saving_often(tmp_path), monkeypatch)
    seen: list[tuple[str, int]] = []
    original = training.Training._next_batch

    def look(self: training.Training) -> Any:
        status = read_status(tmp_path / "small")
        seen.append((status["state"], status["step"]))
        return original(self)

    monkeypatch.setattr(training.Training, "_next_batch", look)
    train_quietly(saving_often(tmp_path))
    assert seen[0] == ("running", 7)
    assert seen[-1] == ("running", 15)


def test_steps_can_be_raised_and_the_effect_on_the_schedule_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_quietly(saving_often(tmp_path))
    results = trainer.train(saving_often(tmp_path, run__steps=30), report=False)
    assert results.steps == 30
    said = capsys.readouterr().out
    assert "run.steps was raised from 20 to 30" in said
    assert "Continuing at step 20 of 30" in said
    rates = [line["student_rate"] for line in untimed_lines(tmp_path / "small") if "student_rate" in line]
    message = f"student.safetensors is the {results.headline['description']}."
    assert read_status(tmp_path / "small") | {"process": 0, "host": ""} == {
        "state": "done", "step": 30, "process": 0, "host": "", "message": message,
    }  # fmt: skip
    assert not rates or rates[-1] < rates[0]


def test_steps_cannot_be_raised_in_fine_tuning_nor_lowered(tmp_path: Path) -> None:
    tuned = {"finetune__steps": 4, "finetune__batch": 16}
    train_quietly(saving_often(tmp_path, **tuned))
    with pytest.raises(ConfigError, match="at step 24, which is one of fine-tuning"):
        train_quietly(saving_often(tmp_path, run__steps=30, **tuned))
    with pytest.raises(ConfigError, match=r"other settings \(run\.steps\).*run\.steps may be raised"):
        train_quietly(saving_often(tmp_path, run__steps=10, **tuned))
    at = tmp_path / "small/checkpoints/step-20"
    assert train_quietly(saving_often(tmp_path, run__steps=30, **tuned), resume=str(at)).steps == 34


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    lost = short_config(tmp_path / "runs", data__source="folder", data__root=str(tmp_path / "nowhere"))
    with pytest.raises(DataError):
        train_quietly(lost)
    assert not (tmp_path / "runs").exists()


def test_a_start_over_that_fails_gives_the_old_run_back(tmp_path: Path) -> None:
    train_quietly(saving_often(tmp_path))
    before = states(tmp_path / "small")
    lost = saving_often(tmp_path, data__source="folder", data__root=str(tmp_path / "nowhere"))
    with pytest.raises(DataError):
        train_quietly(lost, resume="never")
    assert states(tmp_path / "small") == before
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_starting_over_moves_no_run_that_is_running(tmp_path: Path) -> None:
    train_quietly(saving_often(tmp_path))
    with lock_folder(tmp_path / "small"), pytest.raises(StorageError, match="in use by process"):
        train_quietly(saving_often(tmp_path), resume="never")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert (tmp_path / "small/results.json").is_file()


def test_an_interrupted_run_that_cannot_start_again_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(7, saving_often(tmp_path), monkeypatch)

    def fail(*_: object, **__: object) -> None:
        raise DataError("the disk of the images is gone.")

    monkeypatch.setattr(training, "build_data", fail)
    with pytest.raises(DataError):
        train_quietly(saving_often(tmp_path))
    status = read_status(tmp_path / "small")
    assert (status["state"], status["step"]) == ("failed", 7)


def test_the_student_of_an_interrupted_run_is_that_of_its_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(7, saving_often(tmp_path), monkeypatch)
    run = tmp_path / "small"
    found = load_classifier(run)
    assert found.classes == tuple("0123456789")
    assert "not finished: this is its averaged student of step 7" in found.remark
    saved = checkpoint.read(run / "checkpoints/step-7").tensors
    for name, value in found.module.state_dict().items():
        assert torch.equal(value, saved[f"student/average/{name}"]), name
    judged = evaluate(run).sets
    assert {one.name for one in judged} == {"validation", "test"}
    assert "student of step 7" in capsys.readouterr().err
    train_quietly(saving_often(tmp_path))
    assert load_classifier(run).remark == ""


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(ConfigError, match=r"no student\.safetensors and no checkpoint"):
        load_classifier(tmp_path)


def test_status_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    train_quietly(saving_often(tmp_path))
    assert json.loads((tmp_path / "small/STATUS.json").read_text())["state"] == "done"
    assert not list((tmp_path / "small").glob("*.tmp*"))
