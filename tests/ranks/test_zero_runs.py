"""A run on DeepSpeed's shards as its user sees it: it stops and continues like any other, and leaves one network."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastmpl.config import Config
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.run import checkpoint
from fastmpl.run.classifier import load_classifier
from tests.ranks.runs import Ended, Job, conv
from tests.ranks.spawned import on_ranks
from tests.run.short_runs import short_config, untimed_lines

pytest.importorskip("deepspeed", reason="pip install fastmpl[sharded]")
pytestmark = pytest.mark.timeout(600)
SECONDS = 500


def run(job: Job, size: int = 2, killed: int | None = None) -> list[Ended]:
    return on_ranks(size, job, grouped=False, killed=killed, seconds=SECONDS)


def sharded(folder: Path, stage: int, **changes: object) -> Config:
    """Batch norm on each rank's own images, and a checkpoint every five steps."""
    return conv(folder, system__engine="zero", system__zero_stage=stage, run__checkpoint_every=5, **changes)


def tensors(folder: Path, ranks: Ranks, step: int = 20) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / f"small/checkpoints/step-{step}", ranks).tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted ZeRO-2 run on two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    assert [ended.code for ended in run(Job(sharded(folder, 2)))] == [0, 0]
    return folder


def kill_at_seven(folder: Path) -> None:
    """A rank is killed in its seventh step; the checkpoint of the fifth is the newest."""
    left = run(Job(sharded(folder, 2), event="kill", rank=1), killed=1)
    assert [ended.code for ended in left] == [6]
    assert checkpoint.steps(folder / "small/checkpoints") == [5]


def test_a_killed_run_continues_on_as_many_ranks_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    kill_at_seven(tmp_path)
    assert [ended.code for ended in run(Job(sharded(tmp_path, 2)))] == [0, 0]
    for rank in (0, 1):
        expected, found = (tensors(folder, Ranks(rank, 2)) for folder in (whole, tmp_path))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert untimed_lines(whole / "small") == untimed_lines(tmp_path / "small")


def test_a_killed_run_continues_on_one_rank(tmp_path: Path) -> None:
    """Group norm: another number of ranks is then the same network."""
    group = {"teacher__norm": "group", "student__norm": "group"}
    run(Job(sharded(tmp_path / "whole", 2, **group)))
    left = run(Job(sharded(tmp_path / "parts", 2, **group), event="kill", rank=1), killed=1)
    assert [ended.code for ended in left] == [6]
    (ended,) = run(Job(sharded(tmp_path / "parts", 2, **group)), size=1)
    assert ended.code == 0
    assert "2 ranks wrote the checkpoint and 1 continue" in ended.told
    expected, found = (tensors(tmp_path / name, ALONE) for name in ("whole", "parts"))
    assert found.keys() == expected.keys()
    for name in set(expected) - {"meter"}:
        torch.testing.assert_close(found[name].reshape(-1), expected[name].reshape(-1), rtol=1e-3, atol=1e-5)


def test_each_rank_writes_its_pieces_and_the_run_leaves_one_whole_network(whole: Path) -> None:
    found, both = [tensors(whole, Ranks(rank, 2)) for rank in (0, 1)], tensors(whole, ALONE)
    size = sum(value.numel() for name, value in both.items() if name.startswith("optimiser", 8))
    for part in found:
        mine = sum(value.numel() for name, value in part.items() if name.startswith("optimiser", 8))
        assert mine < 0.6 * size
    saved = safetensors.torch.load_file(whole / "small/student.safetensors")
    for name, value in load_classifier(whole / "small", "average").module.state_dict().items():
        expected = both[f"student/average/{name}"]
        torch.testing.assert_close(value.reshape(-1), expected.reshape(-1), check_dtype=False)
        assert value.shape == saved[name].shape


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_run_of_any_stage_is_the_run_of_plain_ranks(stage: int, tmp_path: Path) -> None:
    """Evaluation, checkpoints and fine-tuning included. With 99 validation images, one rank has one more to see."""
    changes: dict[str, Any] = {
        "finetune__steps": 4,
        "finetune__lr": 0.01,
        "finetune__batch": 20,
        "data__validation": 100,
    }
    changes["feedback__every"] = 2  # steps with and without credit
    perceptrons = {"teacher__model": "perceptron", "student__model": "perceptron"}
    found = run(
        Job(short_config(tmp_path / "zero", system__engine="zero", system__zero_stage=stage, **changes, **perceptrons))
    )
    expected = run(Job(short_config(tmp_path / "plain", **changes, **perceptrons)))
    assert [ended.code for ended in [*found, *expected]] == [0, 0, 0, 0]
    for ended, other in zip(found, expected, strict=True):
        assert ended.results is not None and other.results is not None
        assert ended.results == other.results | {"seconds": ended.results["seconds"]}
    one, two = (
        safetensors.torch.load_file(tmp_path / f"{name}/small/student.safetensors") for name in ("zero", "plain")
    )
    for name, value in two.items():
        torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-5)
    assert json.loads((tmp_path / "zero/small/STATUS.json").read_text())["state"] == "done"
