"""Runs of gold loss correction: what they take from the run that judges the labels, and which runs cannot judge."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.cli import main
from fastmpl.config import Config, ConfigError, save
from fastmpl.data.build import build as build_data
from fastmpl.errors import StorageError
from fastmpl.methods.gold_correction import CorruptionEstimate, estimate_corruption
from fastmpl.run import checkpoint
from fastmpl.run.classifier import load_classifier
from fastmpl.run.corruption import _describe
from fastmpl.run.headline import NetworkName
from fastmpl.telemetry.metrics_file import read_lines
from tests.run.short_runs import short_config, stop_after, train_quietly, untimed_lines

NAMES: tuple[NetworkName, ...] = ("selected", "last", "average")


def judged(folder: Path, name: str, **changes: Any) -> Config:
    return short_config(folder, "digits_noisy", run__name=name, feedback__kind="off", **changes)


def gold(folder: Path, judge: Path, **changes: Any) -> Config:
    asked = {"method__name": "gold_correction", "teacher__model": str(judge)} | changes
    return judged(folder, "small", **asked)


def last(folder: Path, step: int = 20) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / f"small/checkpoints/step-{step}").tensors


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on noisy digits, which selects a network of its middle."""
    folder = tmp_path_factory.mktemp("judge")
    train_quietly(judged(folder, "noisy", method__name="supervised", run__steps=60, run__evaluate_every=10))
    return folder / "noisy"


@pytest.fixture(scope="module")
def whole(judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train_quietly(gold(folder, judge))
    return folder


@pytest.mark.parametrize("average", [True, False])
def test_the_corruption_is_what_the_judges_average_or_else_its_headline_says_of_the_trusted_images(
    average: bool, judge: Path, whole: Path, tmp_path: Path
) -> None:
    if not average:
        judge, whole = tmp_path / "alone", tmp_path
        train_quietly(judged(tmp_path, "alone", method__name="supervised", student__average=0.0))
        train_quietly(gold(tmp_path, judge))
    config = gold(whole, judge)
    data = build_data(config.data, seed=config.run.seed)
    trusted = data.examples(data.split.trusted)
    with torch.no_grad():
        by = {
            name: load_classifier(judge, name).module(trusted.images) for name in NAMES if average or name != "average"
        }
    found = {name: estimate_corruption([(logits, trusted.labels)], 10) for name, logits in by.items()}
    assert found["selected"].images.tolist() == [5] * 10
    expected = found.pop("average" if average else "selected").matrix
    torch.testing.assert_close(last(whole)["corruption/matrix"], expected)
    assert not average or (found["last"].matrix - expected).abs().max() > 0.01


def test_a_run_learns_from_both_kinds_of_labels(whole: Path) -> None:
    lines = [line for line in read_lines(whole / "small") if line["kind"] == "train"]
    assert all(line["student_loss"] > line["supervised_loss"] > 0 for line in lines)
    assert lines[-1]["supervised_loss"] < lines[0]["supervised_loss"]
    assert all(line["pseudo_loss"] == line["coverage"] == 0 for line in lines)


def test_a_stopped_run_continues_bit_for_bit_without_the_judge(
    judge: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "judge"
    shutil.copytree(judge, there)
    parts = gold(tmp_path, there)
    stop_after(7, parts, monkeypatch)
    shutil.rmtree(there)
    train_quietly(parts)
    expected, found = last(whole), last(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert untimed_lines(whole / "small") == untimed_lines(tmp_path / "small")


def test_a_run_whose_checkpoints_are_unreadable_does_not_go_on_with_another_corruption(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gold(tmp_path, judge)
    stop_after(7, config, monkeypatch)
    for file in (tmp_path / "small/checkpoints").glob("*/rank-0.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(StorageError, match="has no checkpoint that can be read"):
        train_quietly(config)


def test_without_an_estimate_both_kinds_of_labels_are_learned_as_they_are(tmp_path: Path) -> None:
    train_quietly(judged(tmp_path, "small", method__name="gold_correction", method__corruption="identity"))
    assert torch.equal(last(tmp_path)["corruption/matrix"], torch.eye(10))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"run__seed": 1},
            "learned other images or labels than this run has: train it with the same [data] and run.seed",
        ),
        ({"data__noise": ("none", 0.0)}, "learned other images or labels than this run has"),
        ({"data__trusted": 40}, "learned other images or labels than this run has"),
        ({"teacher__model": "nowhere"}, 'teacher.model = "nowhere" is no folder of a run: it has no config.toml'),
    ],
    ids=str,
)
def test_a_judge_of_other_labels_is_refused(judge: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        train_quietly(gold(tmp_path, judge, **changes))
    assert said in str(refused.value)


def test_a_judge_that_knows_the_trusted_labels_is_refused(whole: Path, judge: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='was trained by "gold_correction", and'):
        train_quietly(gold(tmp_path / "a", whole / "small"))
    tuned = tmp_path / "tuned"
    shutil.copytree(judge, tuned)
    save(
        judged(tmp_path, "b", method__name="supervised", finetune__steps=1, finetune__images="trusted"),
        tuned / "config.toml",
    )
    with pytest.raises(ConfigError, match="was fine-tuned on the trusted images"):
        train_quietly(gold(tmp_path / "c", tuned))


def test_a_judge_without_checkpoints_is_refused_by_check_too(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(judge, bare)
    shutil.rmtree(bare / "checkpoints")
    path, eager = tmp_path / "gold.toml", {"system__graph": "off"}  # whether a step can be captured is asked elsewhere
    save(gold(tmp_path, bare, **eager), path)
    assert main(["check", str(path)]) == ConfigError("").exit_code
    assert "has no checkpoint, which tells the labels that it learned" in " ".join(capsys.readouterr().err.split())
    save(gold(tmp_path, judge, **eager), path)
    assert main(["check", str(path)]) == 0


def test_classes_without_trusted_images_are_named() -> None:
    matrix = torch.tensor([[0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    found = _describe(CorruptionEstimate(matrix, torch.tensor([3, 2, 0])), ("cat", "dog", "owl"), "runs/noisy")
    assert found == [
        "By runs/noisy and 5 trusted images, 70% of the labels are right; of class cat, 60%.",
        "No trusted image is of owl: how its label is confused is not known, and it is taken as right.",
    ]
