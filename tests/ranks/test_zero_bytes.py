"""A rank holds what ZeRO's formula says, measured on its tensors, and `fastmpl plan` says the same."""

from typing import Any

import pytest

from fastmpl.analysis.planner.state_bytes import state_bytes
from fastmpl.config.optimisers import ABILITIES
from tests.ranks.holdings import Holdings, networks
from tests.ranks.spawned import on_ranks

pytest.importorskip("deepspeed", reason="pip install fastmpl[sharded]")
pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(("size", "depth"), [(1, 20), (2, 60), pytest.param(4, 200, marks=pytest.mark.slow)])
def test_bytes_of_a_rank_follow_zeros_formula_within_5_percent(size: int, depth: int) -> None:
    job = Holdings(depth)
    elements = {role: sum(p.numel() for p in network.parameters()) for role, network in networks(depth).items()}
    every: list[dict[Any, dict[str, int]]] = on_ranks(size, job, seconds=500)
    for rank in every:
        for (role, stage), found in rank.items():
            moments, average = ABILITIES[job.optimiser].moments, role == "student"
            expected = state_bytes(elements[role], stage=stage, ranks=size, moments=moments, average=average)
            for kind, measured in found.items():
                planned = getattr(expected, kind)
                assert abs(measured - planned) <= 0.05 * planned, (role, stage, kind, measured, planned)
