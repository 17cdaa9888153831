"""A checkpoint whose hashes are right is trusted no further than its content: a bad one falls back like a damaged one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.errors import ConfigError, FastMPLError
from fastmpl.run import trainer, training
from tests.faults.forged import Content, forge
from tests.run.short_runs import short_config, train_quietly

WEIGHT = "student/module/blocks.0.0.weight"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("finished")
    train_quietly(conv(folder))
    return folder / "small"


def conv(folder: Path) -> Any:
    own = {
        f"{role}__{key}": value for role in ("teacher", "student") for key, value in (("model", "conv"), ("width", 8))
    }
    return short_config(folder, run__checkpoint_every=10, **own)


def set_tensor(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Content], None]:
    return lambda found: found.tensors.update({name: make(found.tensors[name])})


class Continued(Exception):
    """What a run would have continued from, and said."""

    def __init__(self, step: int, notes: list[str]) -> None:
        super().__init__(step)
        self.step, self.notes = step, notes


def stop_before_the_first_step(run: training.Training) -> None:
    raise Continued(run.step, run.notes)


FORGERIES: dict[str, Callable[[Content], object]] = {
    "another shape": set_tensor(WEIGHT, lambda t: t[:1]),
    "another type": set_tensor(WEIGHT, lambda t: t.to(torch.int32)),
    "half precision": set_tensor(WEIGHT, lambda t: t.half()),
    "not a number": set_tensor(WEIGHT, lambda t: t * torch.nan),
    "a tensor less": lambda found: found.tensors.pop(WEIGHT),
    "a tensor more": lambda found: found.tensors.update(strange=torch.zeros(2)),
    "another step in its state": set_tensor("step/step", lambda t: t + 5),
    "another step in its manifest": lambda found: found.manifest.update(step=10),
    "a huge step": lambda found: found.manifest.update(step=10**15),
    "a negative step": lambda found: found.manifest.update(step=-1),
    "a step that is a word": lambda found: found.manifest.update(step="20"),
    "another position in the data": lambda found: found.facts["data"].update(step=3),
    "no position in the data": lambda found: found.facts.pop("data"),
    "other data": lambda found: found.facts["data"]["fingerprint"].update(labelled=4),
    "no times": lambda found: found.facts.pop("seconds"),
    "a best student that is a list": lambda found: found.facts.update(best=[1, 2]),
    "shards that are numbers": lambda found: found.manifest.update(sharded=[1]),
    "a future schema": lambda found: found.manifest.update(schema=99),
    "a schema that is a list": lambda found: found.manifest.update(schema=[]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_checkpoint_is_reported_and_the_one_before_is_used(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "small")
    forge(tmp_path / "small/checkpoints/step-20", FORGERIES[name])
    monkeypatch.setattr(training.Training, "go", stop_before_the_first_step)
    with pytest.raises(Continued) as continued:
        trainer.train(conv(tmp_path), report=False)
    assert continued.value.step == 10
    assert any("The previous checkpoint is used" in note for note in continued.value.notes)


def test_where_no_checkpoint_fits_the_run_does_not_start_over(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "small")
    for step in (10, 20):
        forge(tmp_path / f"small/checkpoints/step-{step}", FORGERIES["another shape"])
    with pytest.raises(ConfigError, match="step 20 does not fit this configuration"):
        train_quietly(conv(tmp_path))


@pytest.mark.parametrize("name", ["not a number", "another type", "another step in its state", "no times"])
def test_a_forged_checkpoint_that_is_named_is_refused_in_one_sentence(
    name: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "small")
    path = tmp_path / "small/checkpoints/step-20"
    forge(path, FORGERIES[name])
    with pytest.raises(FastMPLError) as raised:
        train_quietly(conv(tmp_path), resume=str(path))
    assert "\n" not in str(raised.value)
