"""The golden curve stands, with the fused operations and with torch's."""

import pytest
import torch

from benchmarks import golden
from fastmpl_kernels import dispatch, library


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("precision", golden.LOSSES)
@pytest.mark.parametrize("fused", [True, False], ids=["fused operations", "torch's operations"])
def test_the_curve_is_the_golden_one_within_rounding(precision: golden.Precision, fused: bool) -> None:
    expected = golden.load_golden()[precision]
    found = golden.compute_curve(precision, fused)
    apart = golden.distance(found, expected)
    assert max(apart.values()) <= golden.WITHIN[precision], f"{apart}: `python -m benchmarks.golden` if this was meant"
    if library.available():
        assert dispatch.last_backend("student_objective") == ("native" if fused else "reference")


def test_a_step_that_computes_something_else_leaves_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "STEPS", 3)
    expected = {"student_loss": golden.load_golden()["float32"]["student_loss"][:3]}
    honest = golden.Step.__post_init__

    def smoothed(step: golden.Step) -> None:
        honest(step)
        step.method = type(step.method)(**{**vars(step.method), "student_label_smoothing": 0.05})

    monkeypatch.setattr(golden.Step, "__post_init__", smoothed)
    assert max(golden.distance(golden.compute_curve("float32"), expected).values()) > 10 * golden.WITHIN["float32"]
