"""The last lines of a run: what came of it, where it lies, and what to do next."""

from pathlib import Path
from typing import Any

import pytest

from fastmpl.config import load
from fastmpl.run import trainer
from fastmpl.run.closing import Results, closing_lines
from fastmpl.run.headline import make_headline
from tests.run.short_runs import CONFIGS, short_config

LAST: Any = {"student": {"validation": 0.5, "test": 0.6}, "teacher": {"validation": 0.9, "test": 0.9}}
AVERAGED: Any = LAST | {"average": {"validation": 0.7, "test": 0.8}}
BEST: Any = {"step": 6, "network": "average", "validation": 0.75, "test": 0.82, "score": 0.75}


def finished(last: Any, best: Any = None, tuned: Any = None, seconds: float = 75.0, **changes: Any) -> Results:
    config = load(CONFIGS / "digits.toml", {"run.steps": 9} | changes)
    return Results(9, last, best, tuned, seconds, make_headline(config, 9, best, last, tuned))


def of(results: Results, *, report: bool = True, of_points: bool = False) -> str:
    images: Any = {"validation": 20, "test": 1500}
    return "\n".join(closing_lines(Path("runs/a"), results, images, report=report, of_points=of_points))


def test_the_accuracy_is_that_of_the_network_whose_weights_are_left() -> None:
    last = of(finished(LAST, **{"student.average": 0.0}))
    assert "60.0% of 1,500 test images, 50.0% of 20 validation images" in last
    assert "network   student of step 9; without validation images none is selected" in last
    averaged = of(finished(AVERAGED))
    assert "80.0% of 1,500 test images, 70.0% of 20 validation images" in averaged
    assert "network   averaged student of step 9; without" in averaged
    tuned = of(finished(AVERAGED, tuned={"test": 0.85}, **{"finetune.steps": 3}))
    assert "85.0% of 1,500 test images\nnetwork   fine-tuned student of step 9" in tuned
    selected = of(finished(AVERAGED, best=BEST))
    assert "82.0% of 1,500 test images, 75.0% of 20 validation images" in selected
    assert "averaged student of step 6, selected by accuracy on the validation images" in selected
    assert "9 steps, 1:15 of training" in selected


def test_what_is_not_there_is_not_promised() -> None:
    nothing: Any = {"average": {}}
    said = of(finished(nothing, seconds=1.0), report=False, of_points=True)
    assert "neither test nor validation images" in said
    assert "report.html" not in said
    assert "fastmpl evaluate runs/a" in said and "predict" not in said


def test_a_finished_run_says_that_nothing_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = short_config(tmp_path)
    trainer.train(config, report=False)
    assert "nothing was trained now" not in capsys.readouterr().out
    trainer.train(config, report=False)
    assert "of training before; nothing was trained now (raise run.steps to go on" in capsys.readouterr().out


def test_a_run_ends_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = trainer.train(short_config(tmp_path))
    run = tmp_path / "small"
    *_, done, accuracy, network, report, weights, following = capsys.readouterr().out.splitlines()
    assert done.startswith("done      20 steps")
    assert f"{100 * results.headline['test']:.1f}% of 500 test images" in accuracy
    assert network == f"network   {results.headline['description']}"
    for line, path in ((report, run / "report.html"), (weights, run / "student.safetensors")):
        assert str(path) in line and path.is_file()
    assert following == f"next      fastmpl predict {run} IMAGES"
