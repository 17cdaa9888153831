"""Gold loss correction on ranks and on shards is the run of one process, through the corruption that rank 0 estimated."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.distributed.ranks import Ranks
from fastmpl.run import checkpoint
from tests.ranks.runs import Job
from tests.ranks.spawned import on_ranks
from tests.run.short_runs import short_config, train_quietly, untimed_lines

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("stage", [None, 3])  # of ZeRO
def test_two_ranks_train_the_run_of_one_process(stage: int | None, tmp_path: Path) -> None:
    if stage is not None:
        pytest.importorskip("deepspeed", reason="pip install fastmpl[sharded]")
    sharded: dict[str, Any] = {} if stage is None else {"system__engine": "zero", "system__zero_stage": stage}
    noisy: dict[str, Any] = {"base": "digits_noisy", "feedback__kind": "off", "data__batch_trusted": 32}
    train_quietly(short_config(tmp_path, run__name="judge", method__name="supervised", **noisy))
    gold = noisy | {"method__name": "gold_correction", "teacher__model": str(tmp_path / "judge")}
    ended = on_ranks(2, Job(short_config(tmp_path / "two", **gold, **sharded)), grouped=False, seconds=500)
    assert [each.code for each in ended] == [0, 0]
    alone = train_quietly(short_config(tmp_path / "one", **gold))
    assert ended[0].results is not None
    assert ended[0].results["last"] == alone.last
    for key in ("student_loss", "supervised_loss"):
        one, two = (
            [line[key] for line in untimed_lines(tmp_path / f"{name}/small") if line["kind"] == "train"]
            for name in ("one", "two")
        )
        assert len(one) > 1 and one == pytest.approx(two, rel=1e-3)
    matrices = [
        checkpoint.read(tmp_path / name / "small/checkpoints/step-20", Ranks(0, size)).tensors["corruption/matrix"]
        for name, size in (("one", 1), ("two", 2))
    ]
    assert torch.equal(*matrices)
