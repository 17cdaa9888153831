"""The benchmark of the cost model checks a small case on two ranks and plans a large network."""

from benchmarks.bench_scale import Planned, measure_store, plan_ranks
from benchmarks.scale_checks import PERCEPTRON, Case, check
from fastmpl.analysis.planner.link import Link

SMALL = {"small": Case(PERCEPTRON | {"student.width": 16, "teacher.width": 16}, pixels=4, labelled=8, unlabelled=8)}


def test_two_ranks_are_checked_against_one() -> None:
    one, two = check(SMALL, rounds=3, link=Link(1e9, 1e9, 1e-4, 4), ranks=(1, 2))
    assert (one["counted"], one["bytes, counted"]) == (0, 0)
    for quantity in ("messages", "bytes"):
        planned = two[f"{quantity}, planned"]
        assert planned == two["counted" if quantity == "messages" else "bytes, counted"] != 0
    assert float(str(two["messages ms, planned"])) > 0 and float(str(two["step ms, measured"])) > 0


def test_images_are_listed_and_ranks_counted() -> None:
    first, second = plan_ranks([Planned(8)], (10**6, 10**8), {"student.model": "conv", "teacher.model": "conv"})
    assert (first["GPUs"], first["images"], second["images"]) == (8, "1 M", "100 M")
    assert "listing" in str(second["share of the limit"]) and "listing" not in str(first["share of the limit"])


def test_a_call_of_the_store_takes_microseconds() -> None:
    assert 1e-7 < measure_store(0.3) < 1e-3
