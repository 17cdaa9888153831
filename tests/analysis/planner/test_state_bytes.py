"""Bytes of a rank follow ZeRO's formula, and are those of a learner."""

import pytest
import torch

from fastmpl.analysis.accounting import measure
from fastmpl.analysis.planner.state_bytes import StateBytes, gathered_bytes, state_bytes
from fastmpl.config import NetworkConfig
from fastmpl.config.optimisers import ABILITIES
from fastmpl.learners.plain import PlainLearner

EFFICIENTNET_L2 = 480_309_308


def test_two_efficientnet_l2_of_11_5_gb_are_1_4_gb_on_each_of_8_at_stage_3() -> None:
    def both(stage: int) -> float:
        one = state_bytes(EFFICIENTNET_L2, stage=stage, ranks=8, moments=1)  # type: ignore[arg-type]
        return 2 * one.device / 1e9

    assert [round(both(stage), 1) for stage in (0, 1, 2, 3)] == [11.5, 8.2, 4.8, 1.4]


def test_each_stage_cuts_one_more_part() -> None:
    found = [state_bytes(1000, stage=stage, ranks=4, moments=2, average=True) for stage in (0, 1, 2, 3)]  # type: ignore[arg-type]
    assert found == [
        StateBytes(4000, 4000, 8000, 4000),
        StateBytes(4000, 4000, 2000, 1000),
        StateBytes(4000, 1000, 2000, 1000),
        StateBytes(1000, 1000, 2000, 1000),
    ]


def test_one_rank_holds_the_same_at_every_stage() -> None:
    assert len({state_bytes(999, stage=stage, ranks=1, moments=1, average=True) for stage in (0, 1, 2, 3)}) == 1  # type: ignore[arg-type]


def test_offload_moves_what_the_optimiser_needs_to_the_host() -> None:
    found = state_bytes(1000, stage=2, ranks=4, moments=2, average=True, offload=True)
    assert found == StateBytes(4000, 1000, host=2000 + 1000 + 2000)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "fastmpl:sgd_ema"])
def test_stage_0_is_what_a_learner_in_one_process_holds(name: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    learner = PlainLearner(module, NetworkConfig(optimiser=name), steps=10, average=0.9)  # type: ignore[arg-type]
    learner.accumulate(learner.forward(torch.randn(4, 64), torch.tensor(0)).square().mean())
    held = measure(lambda: None, learner.state(), module).base_bytes
    elements = sum(p.numel() for p in module.parameters())
    expected = state_bytes(elements, stage=0, ranks=1, moments=ABILITIES[name].moments, average=True).device  # type: ignore[arg-type]
    assert held == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_frozen_parameter_is_its_own_bytes_in_a_learner(name: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    section = NetworkConfig(optimiser=name, freeze=1)  # type: ignore[arg-type]
    learner = PlainLearner(module, section, steps=10, average=0.9)
    learner.accumulate(learner.forward(torch.randn(4, 64), torch.tensor(0)).square().mean())
    held = measure(lambda: None, learner.state(), module).base_bytes
    frozen, learning = (sum(p.numel() for p in layer.parameters()) for layer in module)
    moments = ABILITIES[name].moments  # type: ignore[index]
    expected = state_bytes(learning, stage=0, ranks=1, moments=moments, average=True).device + 4 * frozen
    assert held == pytest.approx(expected, rel=1e-2)


def test_a_forward_mode_pass_at_stage_3_gathers_a_layer_and_not_the_network() -> None:
    credit = [gathered_bytes(10**6, stage=stage, ranks=8, layer=10**4).tangent for stage in (0, 1, 2, 3)]  # type: ignore[arg-type]
    assert credit[3] < credit[2] / 4
    assert gathered_bytes(10**6, stage=3, ranks=8, layer=10**4, exact=False) == (0, 0, 0)
