"""The last lines of a run: what came of it, where it lies, and what to do next."""

from pathlib import Path
from typing import Any

import pytest

from fastmpl.run import trainer
from fastmpl.run.closing import Results, closing_lines
from tests.run.short_runs import short_config

LAST: Any = {"student": {"validation": 0.5, "test": 0.6}, "teacher": {"validation": 0.9, "test": 0.9}}


def of(results: Results, *, report: bool = True, of_points: bool = False) -> str:
    images: Any = {"validation": 20, "test": 1500}
    return "\n".join(closing_lines(Path("runs/a"), results, images, report=report, of_points=of_points))


def test_the_accuracy_is_that_of_the_network_whose_weights_are_left() -> None:
    averaged: Any = LAST | {"average": {"validation": 0.7, "test": 0.8}}
    assert "60.0% of 1,500 test images, 50.0% of 20 validation images (student)" in of(
        Results(9, LAST, None, None, 75.0)
    )
    assert "80.0% of 1,500 test images, 70.0% of 20 validation images (averaged student)" in of(
        Results(9, averaged, None, None, 75.0)
    )
    tuned = of(Results(9, averaged, None, {"test": 0.85}, 75.0))
    assert "85.0% of 1,500 test images (fine-tuned student)" in tuned
    assert "runs/a/student.safetensors (fine-tuned student)" in tuned
    assert "9 steps, 1:15 of training" in tuned


def test_what_is_not_there_is_not_promised() -> None:
    nothing: Any = {"student": {}}
    said = of(Results(9, nothing, None, None, 1.0), report=False, of_points=True)
    assert "neither test nor validation images" in said
    assert "report.html" not in said
    assert "fastmpl evaluate runs/a" in said and "predict" not in said


def test_a_run_ends_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = trainer.train(short_config(tmp_path))
    run = tmp_path / "small"
    *_, done, accuracy, report, weights, following = capsys.readouterr().out.splitlines()
    assert done.startswith("done      20 steps")
    assert f"{100 * results.last['average']['test']:.1f}% of 500 test images" in accuracy
    for line, path in ((report, run / "report.html"), (weights, run / "student.safetensors")):
        assert str(path) in line and path.is_file()
    assert following == f"next      fastmpl predict {run} IMAGES"
