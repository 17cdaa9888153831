"""Several ranks are one process on the concatenated batch: parameters, averages and every feedback value."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fastmpl.distributed.ranks import ALONE
from tests.ranks.parity import CASES, SOME, every_case, some_cases, train_case
from tests.ranks.spawned import on_ranks

EQUAL = [name for name in CASES if not name.startswith(("float32", "conv local"))]
FLOAT32 = ["float32 exact", "float32 scalar"]
Found = list[dict[str, Any]]  # what each rank ended with, by case


@cache
def alone(name: str) -> dict[str, Any]:
    """One process, one batch a step."""
    return train_case(replace(CASES[name], parts=1), ALONE)


@pytest.fixture(scope="module")
def two() -> Found:
    return on_ranks(2, every_case)


@pytest.fixture(scope="module")
def four() -> Found:
    return on_ranks(4, some_cases)


def largest_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name].detach().numpy()).max()) for name in found)


def assert_equal(name: str, ranks: Found) -> None:
    expected = alone(name)
    for found in ranks:
        assert largest_difference(found[name]["tensors"], expected["tensors"]) < 1e-10
        assert np.abs(found[name]["feedback"] - expected["feedback"].numpy()).max() < 1e-10
    assert expected["feedback"].abs().min() > 1e-8  # there was something to agree on


def assert_equal_in_float32(name: str, ranks: Found) -> None:
    expected = alone(name)
    for found in ranks:
        for key, value in expected["tensors"].items():
            allowance = 1e-5 * max(float(value.abs().max()), 1e-3)
            assert np.abs(found[name]["tensors"][key] - value.detach().numpy()).max() <= allowance, key
        assert np.abs(found[name]["feedback"] - expected["feedback"].numpy()).max() < 1e-6


@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_equal_one_process_on_the_concatenated_batch(name: str, two: Found) -> None:
    assert_equal(name, two)


@pytest.mark.parametrize("name", [name for name in SOME if name in EQUAL])
def test_four_ranks_equal_one_process_on_the_concatenated_batch(name: str, four: Found) -> None:
    assert_equal(name, four)


@pytest.mark.parametrize("name", FLOAT32)
def test_two_ranks_equal_one_process_in_float32(name: str, two: Found) -> None:
    assert_equal_in_float32(name, two)


def test_four_ranks_equal_one_process_in_float32(four: Found) -> None:
    assert_equal_in_float32("float32 exact", four)


def test_ranks_hold_the_same_bits(two: Found) -> None:
    """All but the running statistics of local batch norm, which each rank takes of its own images."""
    for name in CASES:
        for key, value in two[0][name]["tensors"].items():
            if "running" not in key or name != "conv local exact":
                assert np.array_equal(value, two[1][name]["tensors"][key]), (name, key)
        assert np.array_equal(two[0][name]["feedback"], two[1][name]["feedback"])


def test_local_batch_norm_is_another_network_on_ranks(two: Found) -> None:
    """Documented: norm = "batch" has each rank's own statistics, and so other gradients than one process."""
    name = "conv local exact"
    assert largest_difference(two[0][name]["tensors"], alone(name)["tensors"]) > 1e-4
