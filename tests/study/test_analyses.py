"""The two analyses of training: what is measured, that it changes nothing, and the page that one command makes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastmpl import cli
from fastmpl.commands.distill import TeacherSource, distill
from fastmpl.data.build import build
from fastmpl.report.analysis_charts import draw_targets, standalone
from fastmpl.run.classifier import load_classifier
from fastmpl.study.analyses import AnalysedRun, Analyses, average_curves, numbers_of, read_run
from fastmpl.telemetry.metrics_file import read_lines
from fastmpl.telemetry.training_analysis import Targets, TrainingAccuracy, moments, read_targets, share_flipped
from tests.run.short_runs import CONFIGS, short_config, stop_after, train_quietly, untimed_lines

SMALL: dict[str, Any] = {"student__width": 16, "teacher__width": 16, "run__evaluate_every": 10, "run__analyse": True}


def test_a_run_that_is_analysed_is_the_same_run(tmp_path: Path) -> None:
    found = [short_config(tmp_path / str(on), **SMALL | {"run__analyse": on}) for on in (False, True)]
    plain, analysed = (train_quietly(config) for config in found)
    assert analysed.last == plain.last
    one, two = (load_file(tmp_path / str(on) / "small/student.safetensors") for on in (False, True))
    assert all(torch.equal(one[name], two[name]) for name in one)
    kinds = [{line["kind"] for line in read_lines(tmp_path / str(on) / "small")} for on in (False, True)]
    assert kinds[1] - kinds[0] == {"training_accuracy", "targets"}


def test_accuracies_are_those_of_the_networks_on_the_images_with_their_true_classes(tmp_path: Path) -> None:
    config = short_config(tmp_path, **SMALL)
    train_quietly(config)
    data = build(config.data, seed=config.run.seed)
    last = {(row.network, row.images): row for row in read_run(tmp_path / "small").accuracies if row.step == 20}
    for network, name in (("teacher", "teacher"), ("average", "average"), ("student", "last")):
        classifier = load_classifier(tmp_path / "small", name)  # type: ignore[arg-type]
        for images, index in (("labelled", data.split.labelled), ("unlabelled", data.split.unlabelled)):
            held = data.examples(index)
            right = (classifier.infer(held.images).argmax(-1) == held.labels).double().mean()
            row = last[network, images]  # type: ignore[index]
            assert row.measured == len(index) and row.accuracy == pytest.approx(float(right), abs=1e-9)


def test_distributions_are_kept_at_five_moments_and_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = (short_config(tmp_path / name, **SMALL) for name in ("whole", "parts"))
    train_quietly(whole)
    stop_after(7, parts, monkeypatch)
    train_quietly(parts)
    assert untimed_lines(tmp_path / "whole/small") == untimed_lines(tmp_path / "parts/small")
    kept = [found for found in read_targets(read_lines(tmp_path / "whole/small")) if found.probabilities]
    assert [found.step for found in kept] == moments(20) == [0, 5, 10, 15, 20]
    for found in kept:
        shares = np.array(found.probabilities)
        assert shares.shape == (12, 10) and shares.sum(1) == pytest.approx(np.ones(12), abs=1e-3)
        assert [int(row.argmax()) for row in shares] == list(found.top[:12])
        assert 0 < found.entropy <= math.log(10) + 1e-9


def test_a_reduced_teacher_starts_as_the_stored_distributions(tmp_path: Path) -> None:
    teacher = short_config(tmp_path / "teacher", method__name="supervised", feedback__kind="off", student__width=16)
    train_quietly(teacher)
    distill(teacher, TeacherSource(str(tmp_path / "teacher/small"), None, 1), output=tmp_path / "store", tell=str)
    config = short_config(tmp_path, method__name="reduced_mpl", data__store=str(tmp_path / "store"), **SMALL)
    train_quietly(config)
    data = build(config.data, seed=config.run.seed)
    first = read_run(tmp_path / "small").targets[0]
    number = {name: place for place, name in enumerate(data.training_names(np.arange(len(data.truth))))}
    stored = data.stored_probabilities(np.array([number[name] for name in first.names]))
    assert stored is not None
    assert torch.tensor(first.probabilities) == pytest.approx(stored, abs=2e-3)
    networks = {row.network for row in read_run(tmp_path / "small").accuracies}
    assert networks == {"student", "average", "teacher"}


def targets(step: int, *top: int) -> Targets:
    return Targets(step, 0.5, 0.5, top)


def test_an_image_has_flipped_if_its_likeliest_class_ever_changed() -> None:
    rows = [targets(0, 1, 1, 1, 1), targets(5, 1, 2, 1, 1), targets(10, 1, 1, 1, 3), targets(20, 1, 1, 1, 3)]
    assert share_flipped(rows) == 0.5  # the second changed and came back
    assert share_flipped(rows, since=5) == 0.5
    assert share_flipped(rows, since=10) == share_flipped(rows[:1]) == share_flipped([]) == 0.0
    assert numbers_of(rows, 20).entropies == [0.5] * 4


def test_curves_are_means_over_seeds() -> None:
    def run(accuracy: float) -> AnalysedRun:
        return AnalysedRun([TrainingAccuracy(5, "average", "labelled", accuracy, 10)], [])

    found = average_curves(Analyses([run(0.5), run(1.0)], [run(0.25), run(0.25)], 5))
    assert {name: rows[0].accuracy for name, rows in found.items()} == {"student": 0.75, "supervised": 0.25}


def test_a_damaged_line_is_left_out() -> None:
    good = {"kind": "targets"} | targets(5, 1)._asdict()
    for bad in ({"step": "x"}, {"entropy": None}, {"top": None}):
        assert read_targets([good, good | {"step": 6} | bad]) == [targets(5, 1)]
    assert read_targets([{"kind": "targets", "step": 3}]) == []


def test_a_figure_by_itself_has_its_colours_in_both_modes() -> None:
    kept = [
        Targets(step, 0.5, 0.5, [0, 1], [[0.9, 0.1], [0.2, 0.8]], ["a", "b"], [0, -1], ["cat", "<dog>"])
        for step in (0, 5)
    ]
    chart = draw_targets(kept, 5)
    assert chart is not None
    text = standalone(chart.svg)
    assert text.startswith("<svg") and "prefers-color-scheme: dark" in text and "xmlns=" in text
    assert text.count("--student: #") == 2 and "var(--student)" in text and "100 %" in text


def test_one_command_trains_what_is_needed_and_draws_both_analyses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = "--run.steps 8 --run.evaluate_every 4 --teacher.width 8 --student.width 8 --data.batch_unlabelled 16"
    asked = ["analyse", str(CONFIGS / "digits.toml"), "--jobs", "1", *short.split()]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "images whose likeliest class ever changes" in said
    folder = tmp_path / "runs/analyse-digits"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"method-0", "supervised-0"}
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4 and "by heart" in page
    found = json.loads((folder / "analyses.json").read_text())
    assert set(found["curves"]) == {"teacher", "student", "supervised"}
    assert len(found["targets"]) == 1 and len(found["targets"][0]["entropies"]) == 5
    assert cli.main(["analyse", str(CONFIGS / "digits.toml"), "--seeds", "0"]) == 2
