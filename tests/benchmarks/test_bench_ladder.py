"""The rows of the ladder learn the same on a network without batch norm, and each is measured."""

from itertools import pairwise

import pytest

from benchmarks.bench_ladder import PERCEPTRON, Rung, climb, difference, measure
from benchmarks.steps import Size

TINY = Size("wrn_10_1", 8, 4, 8)
RUNGS = climb()


@pytest.mark.parametrize(
    ("before", "after"), [pair for pair in pairwise(RUNGS) if pair[1].learns == "the same"], ids=lambda rung: rung.name
)
def test_a_row_moves_a_network_without_batch_norm_as_the_row_before(before: Rung, after: Rung) -> None:
    assert difference(before, after, PERCEPTRON) < 1e-5


def test_another_feedback_moves_it_otherwise() -> None:
    exact = next(number for number, rung in enumerate(RUNGS) if rung.learns == "another feedback")
    assert difference(RUNGS[exact - 1], RUNGS[exact], PERCEPTRON) > 0.01


def test_rows_are_measured() -> None:
    chosen = [rung for rung in RUNGS if rung.name.startswith(("published", "validation", "no graph"))]
    rows = measure(chosen, TINY, rounds=1, seeds=2, steps=2)
    assert [row["change"] for row in rows] == [rung.name for rung in chosen]
    assert rows[0]["speed"] == "1.00x" and rows[0]["Wide ResNet by"] == ""
    assert float(str(rows[2]["Wide ResNet by"])) > 1e-3 > float(str(rows[2]["perceptron moves otherwise by"]))
