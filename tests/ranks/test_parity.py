"""Several ranks are one process on the concatenated batch: parameters, averages and every feedback value."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from fastmpl.learners.ranks import ALONE
from tests.ranks.parity import CASES, every_case, trained
from tests.ranks.spawned import on_ranks

EQUAL = [name for name in CASES if not name.startswith(("float32", "conv local"))]


@cache
def alone(name: str) -> dict[str, Any]:
    return trained(CASES[name], ALONE)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each rank ended with, by case."""
    return on_ranks(request.param, every_case)


def largest_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name].detach().numpy()).max()) for name in found)


@pytest.mark.parametrize("name", EQUAL)
def test_ranks_equal_one_process_on_the_concatenated_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    expected = alone(name)
    for found in ranks:
        assert largest_difference(found[name]["tensors"], expected["tensors"]) < 1e-10
        assert np.abs(found[name]["feedback"] - expected["feedback"].numpy()).max() < 1e-10
    assert expected["feedback"].abs().min() > 1e-8  # there was something to agree on


@pytest.mark.parametrize("name", ["float32 exact", "float32 scalar"])
def test_ranks_equal_one_process_in_float32(name: str, ranks: list[dict[str, Any]]) -> None:
    expected = alone(name)
    for found in ranks:
        for key, value in expected["tensors"].items():
            scale = float(value.abs().max())
            assert np.abs(found[name]["tensors"][key] - value.numpy()).max() <= 1e-5 * max(scale, 1e-3), key
        assert np.abs(found[name]["feedback"] - expected["feedback"].numpy()).max() < 1e-6


def test_ranks_hold_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    """All but the running statistics of local batch norm, which each rank takes of its own images."""
    for name in CASES:
        for found in ranks[1:]:
            for key, value in found[name]["tensors"].items():
                if "running" not in key or name != "conv local exact":
                    assert np.array_equal(value, ranks[0][name]["tensors"][key]), (name, key)
            assert np.array_equal(found[name]["feedback"], ranks[0][name]["feedback"])


def test_local_batch_norm_is_another_network_on_ranks(ranks: list[dict[str, Any]]) -> None:
    """Documented: norm = "batch" has each rank's own statistics, and so other gradients than one process."""
    name = "conv local exact"
    assert largest_difference(ranks[0][name]["tensors"], alone(name)["tensors"]) > 1e-4
    assert torch.isfinite(alone(name)["feedback"]).all()
