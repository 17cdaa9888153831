"""The benchmark of growth measures each axis, fits exponents, and draws its picture from the record."""

from dataclasses import replace

import pytest

from benchmarks.bench_growth import AXES, BASE, Axis, fit, measure_steps, measure_stores, slope
from benchmarks.figures import draw_growth
from benchmarks.records import Record, Row

TINY = replace(BASE, pixels=8, labelled=2)


def test_the_exponent_of_a_power_is_found() -> None:
    assert slope((1, 10, 1000), (5, 500, 5_000_000)) == pytest.approx(2)


def test_a_larger_step_has_more_arithmetic_and_bytes() -> None:
    axis = Axis("images", (4, 16), lambda n: replace(TINY, unlabelled=n))
    small, large = measure_steps(axis, 1, "float32")
    assert (small["value"], large["value"]) == (4, 16)
    for key, times in (("arithmetic", 1.5), ("bytes", 1.1)):  # of the bytes most are the networks'
        assert float(str(large[key])) > times * float(str(small[key]))
    assert large["operators"] == small["operators"]
    (row,) = fit([small, large])
    assert 0.5 < float(str(row["arithmetic"])) < 1.1 and row["operators"] == "0.00"


def test_a_store_grows_with_its_rows() -> None:
    small, large = measure_stores((1000, 3000), repeats=2)
    assert float(str(large["bytes"])) == pytest.approx(3 * float(str(small["bytes"])))


def test_the_bend_is_the_difference_of_the_ends() -> None:
    costs = {1: 1.0, 2: 1.0, 4: 2.0, 8: 8.0}
    rows: list[Row] = [{"axis": "any", "value": n, "seconds": cost, "bytes": 7} for n, cost in costs.items()]
    (row,) = fit(rows)
    assert (row["at the small end"], row["at the large end"], row["bytes"], row["arithmetic"]) == (
        "0.00", "2.00", "0.00", "",
    )  # fmt: skip


def test_the_picture_names_every_axis_of_a_step() -> None:
    rows: list[Row] = [
        {"axis": axis.name, "value": n, "seconds": n / 10, "operators": 1} for axis in AXES for n in axis.values
    ]
    rows += [{"axis": "rows of a store", "value": n, "seconds": 1.0} for n in (1, 2)]
    drawn = draw_growth(Record("growth_points", "table", rows, {}))["growth.svg"].decode()
    assert all(axis.name in drawn for axis in AXES)
    assert "rows of a store" not in drawn
