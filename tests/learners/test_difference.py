"""The difference form of the tangent follows forward mode from the first step to the last, at every scale of the update."""

from typing import Any

import pytest
import torch

from benchmarks.bench_difference import SETTINGS, SIZES, cosines
from fastmpl.learners.passes import LONGEST, SHORTEST, difference_step


@pytest.mark.parametrize("model", ["wrn_10_1", "conv"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_two_forms_agree_over_a_short_training_whose_rate_ends_near_zero(
    model: str, settings: dict[str, Any]
) -> None:
    found = cosines(model, settings, 12, SIZES[model])
    assert min(found) > 0.999, found


def test_the_two_forms_agree_at_the_first_step_of_a_deep_network() -> None:
    assert cosines("wrn_28_2", SETTINGS[0], 1, SIZES["wrn_28_2"])[0] > 0.9995


@pytest.mark.parametrize("update", [0.0, 1e-4, 1e-3, 1.0])
def test_a_step_has_a_length_between_the_bounds_that_rounding_and_curvature_set(update: float) -> None:
    direction, parameters = torch.tensor(5.0), torch.tensor(70.0)
    length = difference_step(direction, parameters, torch.tensor(update)) * direction / parameters
    assert SHORTEST * 0.999 <= length <= LONGEST * 1.001


def test_a_direction_of_norm_zero_is_no_division_by_zero() -> None:
    assert difference_step(torch.tensor(0.0), torch.tensor(70.0), torch.tensor(1.0)) == 1
