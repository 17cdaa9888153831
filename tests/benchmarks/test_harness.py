"""The harness: interleaved, paired, warmed up, and honest about where it ran."""

import itertools
import time

import pytest
import torch

from benchmarks.environment import environment
from benchmarks.harness import compare, sample
from benchmarks.records import RecordError


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_variants_take_turns_and_none_is_always_first():
    calls: list[str] = []
    sample({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"


def test_warm_up_is_not_among_the_samples():
    slow_once = iter([0.05])
    (row,) = compare({"a": lambda: busy(next(slow_once, 0.0))}, rounds=2, warmup=1, baseline="a").rows
    assert row["cpu_q3"] < 0.02


def test_speed_is_the_ratio_to_the_baseline_in_the_same_round():
    turn = itertools.count()

    def work(units: int) -> None:
        busy(0.001 * units * (1 + next(turn) // 2 % 3))  # the machine slows down and recovers, for both alike

    record = compare({"slow": lambda: work(4), "fast": lambda: work(1)}, rounds=9, warmup=1, baseline="slow")
    slow, fast = record.rows
    assert slow["speedup_median"] == 1.0
    assert 3.0 < fast["speedup_median"] < 5.0
    assert fast["speedup_q1"] <= fast["speedup_median"] <= fast["speedup_q3"]


def test_waiting_costs_wall_time_and_no_cpu_time():
    (row,) = compare({"wait": lambda: time.sleep(0.02)}, rounds=3, warmup=1, baseline="wait").rows
    assert row["wall_median"] > 0.015 > row["cpu_median"]


def test_repeats_give_the_time_of_one_call():
    (row,) = compare({"a": lambda: busy(0.002)}, rounds=3, warmup=1, baseline="a", repeats=5).rows
    assert row["cpu_median"] < 0.004


def test_bytes_and_operators_are_counted_with_what_was_there_before():
    x = torch.zeros(256)
    (row,) = compare({"a": lambda: x + 1}, rounds=1, warmup=1, baseline="a", watch={"a": (x,)}).rows
    assert (row["base_bytes"], row["peak_bytes"], row["operations"]) == (1024, 2048, 1)


def test_a_record_says_what_was_asked_and_where_it_ran():
    record = compare({"a": lambda: None}, rounds=2, warmup=1, baseline="a", name="nothing", config={"size": 3})
    assert record.config == {"baseline": "a", "rounds": 2, "warmup": 1, "repeats": 1, "clock": "cpu", "size": 3}
    assert record.environment.keys() == environment().keys()
    assert record.environment["torch"] == torch.__version__
    assert record.environment["threads"] == torch.get_num_threads()
    assert len(record.commit) in (7, 40)  # "unknown" outside a repository


def test_a_baseline_that_is_no_variant_is_refused():
    with pytest.raises(RecordError, match="'b' is not among the variants: a"):
        compare({"a": lambda: None}, rounds=1, warmup=1, baseline="b")
