"""The messages and bytes of a step that `fastmpl plan` counts are those that ranks send, on gloo."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_zero import count_traffic
from benchmarks.scale_checks import build_trainee, make_batch, plan_messages
from fastmpl.analysis.planner.cost import Shape, divide_batches
from fastmpl.config import Config, load
from fastmpl.distributed.ranks import Ranks
from tests.ranks.spawned import on_ranks

DIGITS = Path(__file__).parents[2] / "launch/configs/digits.toml"
SHAPE = Shape(10, (3, 8, 8))
SMALL = {
    "data.batch_labelled": 16,
    "data.batch_unlabelled": 32,
    "student.model": "perceptron",
    "teacher.model": "perceptron",
    "student.width": 16,
    "teacher.width": 12,
    "teacher.depth": 3,
}
SYNC = {"student.model": "conv", "teacher.model": "conv", "student.norm": "sync", "teacher.norm": "sync"}
WRN = {"student.model": "wrn_10_1", "teacher.model": "wrn_10_1"}
CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "scalar": {"feedback.kind": "scalar", "method.targets": "sampled"},
    "off": {"feedback.kind": "off"},
    "difference": {"feedback.tangent": "difference"},
    "per example, shuffled": {
        "feedback.kind": "per_example",
        "method.targets": "sampled",
        "feedback.control": "shuffled",
    },
    "shuffled": {"feedback.control": "shuffled"},
    "accumulated": {"system.accumulate": 2},
    "accumulated difference": {"system.accumulate": 2, "feedback.tangent": "difference"},
    "last layer": {"feedback.depth": 1},
    "supervised": {"method.name": "supervised"},
    "gold correction": {"method.name": "gold_correction", "method.corruption": "identity", "data.trusted": 16},
    "wrn": WRN,
    "sync exact": SYNC,
    "sync scalar": SYNC | {"feedback.kind": "scalar", "method.targets": "sampled", "system.deferred": True},
    "sync difference": SYNC | {"feedback.tangent": "difference", "uda.weight": 0.0},
    "sync joint": SYNC | {"system.schedule": "joint"},
    "sync last block": SYNC | {"feedback.depth": 1},
    "sync timm": SYNC | {"student.model": "timm:test_efficientnet"},
    "sync uda": SYNC | {"method.name": "uda"},
}
SHARDED = (
    "exact",
    "scalar",
    "off",
    "difference",
    "shuffled",
    "accumulated",
    "accumulated difference",
    "last layer",
    "wrn",
)


def config_of(name: str, stage: int | None = None) -> Config:
    sharded = {} if stage is None else {"system.engine": "zero", "system.zero_stage": stage}
    return load(DIGITS, SMALL | CASES[name] | sharded)


@dataclass(frozen=True)
class Sent:
    """A job of each rank: messages and bytes of the second step, by the names of cases and the stages of ZeRO."""

    cases: tuple[tuple[str, int | None], ...]

    def __call__(self, ranks: Ranks) -> dict[tuple[str, int | None], tuple[int, int]]:
        found = {}
        for name, stage in self.cases:
            config = config_of(name, stage)
            trainee, batch = build_trainee(config, SHAPE, ranks), make_batch(divide_batches(config, ranks.size), SHAPE)
            trainee.step(batch)
            traffic = count_traffic(partial(trainee.step, batch))
            found[name, stage] = traffic.messages, traffic.bytes
            for learner in trainee.learners().values():
                learner.close()
        return found


def counted(name: str, stage: int | None, ranks: int) -> tuple[int, int]:
    config = config_of(name, stage)
    found = plan_messages(config, SHAPE, ranks, stage)
    return sum(messages.number for messages in found), sum(messages.bytes for messages in found)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_send_what_is_counted(size: int) -> None:
    (sent, *_) = on_ranks(size, Sent(tuple((name, None) for name in CASES)))
    assert sent == {(name, None): counted(name, None, size) for name in CASES}


def test_sharded_ranks_send_what_is_counted() -> None:
    pytest.importorskip("deepspeed", reason="pip install fastmpl[sharded]")
    cases = tuple((name, stage) for stage in (0, 1, 2) for name in (SHARDED if stage == 1 else ("exact", "scalar")))
    (sent, *_) = on_ranks(2, Sent(cases), seconds=300)
    assert sent == {case: counted(*case, 2) for case in cases}


def test_parameters_in_shards_travel_at_most_as_often_as_is_counted() -> None:
    pytest.importorskip("deepspeed", reason="pip install fastmpl[sharded]")
    cases = (("exact", 3), ("scalar", 3), ("wrn", 3))
    (sent, *_) = on_ranks(2, Sent(cases), seconds=300)
    for case in cases:
        most = counted(*case, 2)[1]
        assert 0.6 * most < sent[case][1] <= most + 4096, case  # beside the sizes that DeepSpeed exchanges
