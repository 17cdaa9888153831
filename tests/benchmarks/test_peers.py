"""The feedback of other libraries' steps, and of this project's, against double backward in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.bench_peer_losses import rows
from benchmarks.bench_peers import BETTY, DIFFERENCE, DOUBLE, JVP, UPDATES, errors
from benchmarks.bench_step import unfuse
from benchmarks.peers import DoubleBackwardStep
from benchmarks.records import Record
from benchmarks.steps import Size
from benchmarks.tables import render
from fastmpl_kernels import library

TINY = Size("wrn_10_1", 16, 4, 12)


def test_exact_feedback_has_the_direction_of_double_backward() -> None:
    found = errors(TINY)
    assert {JVP, DIFFERENCE, DOUBLE} <= found.keys() <= {JVP, DIFFERENCE, BETTY, *UPDATES}
    assert found[JVP] < 1e-4
    assert all(found[name] < 1e-4 for name in UPDATES if name in found)
    assert 0 < found[DIFFERENCE] < 0.1


def test_a_step_by_double_backward_moves_both_networks() -> None:
    step = DoubleBackwardStep(TINY, unfuse)
    before = [p.detach().clone() for module in (step.student, step.teacher) for p in module.parameters()]
    step()
    after = [p for module in (step.student, step.teacher) for p in module.parameters()]
    assert all((a - b).abs().max() > 0 for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("counted", [True, False])
def test_a_timing_shows_what_is_known(counted: bool) -> None:
    times = {f"{kind}_{q}": 1.0 for kind in ("cpu", "wall", "speedup") for q in ("q1", "median", "q3")}
    row = {"variant": "x", **times, "peak_bytes": 2**20 if counted else None, "operations": 7 if counted else None}
    rows = [{**row, "convolutions": 0.781, "error": None if counted else 0.00123}]
    config = {"clock": "cpu", "baseline": "y", "rounds": 1}
    there = {"gpu": "", "cpu": "c", "threads": 1, "cores": 1, "torch": "2", "dirty": False}
    table = render(Record("peers", "timing", rows, config, "cmd", "2026-01-01", "abc", there)).splitlines()
    assert table[0].endswith("| convolutions | error |")
    assert table[2].endswith("| 1.0 MiB | 7 | 78% |  |" if counted else "|  |  | 78% | 0.0012 |")


@pytest.mark.parametrize(("name", "library"), [("exact by higher", "higher"), ("exact by torchopt", "torchopt")])
def test_a_librarys_optimiser_takes_the_same_steps(name: str, library: str) -> None:
    pytest.importorskip(library, reason=f"pip install {library}")

    def networks_after(make: Callable[..., Any]) -> torch.Tensor:
        torch.manual_seed(0)
        step = DoubleBackwardStep(TINY, unfuse, dtype=torch.float64, make_update=make)
        for _ in range(3):  # the momentum counts from the second on
            step()
        return torch.cat([p.detach().flatten() for m in (step.student, step.teacher) for p in m.parameters()])

    ours, theirs = networks_after(UPDATES[DOUBLE]), networks_after(UPDATES[name])
    assert (ours - theirs).norm() < 1e-12 * ours.norm()


def test_the_losses_of_the_comparison_are_the_same_loss() -> None:
    found = list(rows())
    assert ("fastmpl, C++" in {row["loss"] for row in found}) == library.available()
    for row in found:
        allowed = 1e-6 if row["dtype"] == "float32" else 1e-2
        assert float(str(row["error of the loss"])) < allowed
        assert 0 < float(str(row["error of the gradient"])) < allowed
