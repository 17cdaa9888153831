"""What is not finite on one rank is skipped on all ranks, and counted."""

from pathlib import Path

import pytest
import torch

from fastmpl.distributed.ranks import Ranks
from fastmpl.run import checkpoint
from fastmpl.telemetry.metrics_file import read_lines
from tests.ranks.runs import Job, conv
from tests.ranks.spawned import on_ranks


@pytest.mark.parametrize("event", ["nan", "infinite"])
def test_an_update_that_is_not_finite_on_one_rank_is_skipped_on_all(event: str, tmp_path: Path) -> None:
    ended = on_ranks(2, Job(conv(tmp_path), event=event, rank=1), grouped=False)
    assert [one.code for one in ended] == [0, 0]
    first, second = (checkpoint.read(tmp_path / "small/checkpoints/step-20", Ranks(rank, 2)).tensors for rank in (0, 1))
    for name, value in first.items():
        if "running" not in name and name != "meter":  # statistics are each rank's own
            assert torch.equal(value, second[name]), name
            assert not value.is_floating_point() or value.isfinite().all(), name
    lines = [line for line in read_lines(tmp_path / "small") if line["kind"] == "train"]
    assert sum(line["skipped"] for line in lines) >= 1
