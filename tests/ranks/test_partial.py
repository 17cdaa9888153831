"""Passes that are replayed under DeepSpeed's engines, whose hooks receive the gradients, train the same networks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fastmpl.distributed.ranks import Ranks
from fastmpl.step.pass_graphs import replay_passes
from tests.ranks import parity
from tests.ranks.spawned import on_ranks
from tests.step.pooled_cuda import Pooled

pytest.importorskip("deepspeed", reason="the sharded extra brings it: pip install fastmpl[sharded]")
STAGES = (0, 1, 2)


def train_eagerly_and_replayed(ranks: Ranks) -> dict[str, Any]:
    """Both networks after some steps at each stage, with and without imitated graphs."""
    return {f"{stage} {graphs}": _train(stage, ranks, graphs) for stage in STAGES for graphs in (False, True)}


def _train(stage: int, ranks: Ranks, graphs: bool) -> dict[str, Any]:
    case = replace(parity.CASES["conv group exact"], dtype=torch.float32, stage=stage)
    honest, replays = parity._learner, 0

    def make_with_graphs(*arguments: Any, **settings: Any) -> Any:
        learner = honest(*arguments, **settings)
        replay_passes([learner], torch.device("cpu"), never_open_together=False)
        return learner

    with pytest.MonkeyPatch.context() as patch:
        cuda = Pooled(patch)
        if graphs:
            patch.setattr(parity, "_learner", make_with_graphs)
        tensors = parity.train_case(case, ranks, steps=8)["tensors"]
        replays = sum(graph.replays for graph in cuda.graphs)
        assert not any(graph.calls for graph in cuda.graphs), "the learners are closed, and their graphs with them"
    return tensors | {"replays": replays}


def test_sharded_networks_learn_the_same_with_their_passes_replayed() -> None:
    for found in on_ranks(2, train_eagerly_and_replayed):
        for stage in STAGES:
            eager, replayed = found[f"{stage} False"], found[f"{stage} True"]
            assert eager.pop("replays") == 0
            assert replayed.pop("replays") > 20
            for name, value in eager.items():
                np.testing.assert_allclose(replayed[name], value, rtol=1e-6, atol=1e-7, err_msg=f"{stage} {name}")
