"""Runs beside each other: which are seeds of one arm, and what is subtracted from what."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmpl.cli import main
from fastmpl.commands.compare import compare_runs, format_comparison
from fastmpl.config import Config, save
from fastmpl.errors import ConfigError
from fastmpl.paired_statistics import paired_interval
from fastmpl.telemetry.predictions import FILE, Predictions, Record


def finished(root: Path, name: str, seed: int, test: float | None, **settings: dict[str, Any]) -> Path:
    """The folder of a finished run."""
    folder = root / name
    folder.mkdir(parents=True)
    run = {"name": name, "seed": seed, "output": str(root)}
    save(Config.model_validate({"run": run, "data": {"source": "digits"}} | settings), folder / "config.toml")
    accuracies = {"validation": 0.5} | ({} if test is None else {"test": test})
    (folder / "results.json").write_text(json.dumps({"steps": 9, "last": {"average": accuracies}, "seconds": 1.0}))
    return folder


UDA: dict[str, Any] = {"method": {"name": "uda"}, "feedback": {"kind": "off"}}


def test_seeds_of_one_setting_are_one_arm_and_arms_are_paired_by_seed(tmp_path: Path) -> None:
    mpl = [finished(tmp_path, f"a{seed}", seed, 0.6 + seed / 100) for seed in (2, 0, 1)]
    uda = [finished(tmp_path, f"b{seed}", seed, 0.7 + seed / 50, **UDA) for seed in (1, 2, 0)]
    compared = compare_runs([mpl[0], *uda, *mpl[1:]])
    base, other = compared.table.arms
    assert base.accuracies == [0.6, 0.61, 0.62] and other.accuracies == [0.7, 0.72, 0.74]
    assert other.name == 'method.name = "uda", feedback.kind = "off"'
    text = format_comparison(compared)
    interval = paired_interval(other.accuracies, base.accuracies)
    assert f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]" in text
    assert max(map(len, text.splitlines())) <= 80 and compared.remarks == []


def test_only_common_seeds_are_subtracted(tmp_path: Path) -> None:
    mpl = [finished(tmp_path, f"a{seed}", seed, 0.6 + seed / 100) for seed in (0, 1, 2)]
    uda = [finished(tmp_path, f"b{seed}", seed, 0.7, **UDA) for seed in (1, 2, 3)]
    compared = compare_runs([*mpl, *uda])
    text = format_comparison(compared)
    interval = paired_interval([0.7, 0.7], [0.61, 0.62])
    assert f"{100 * interval.mean:+.1f} [" in text
    assert "over the seeds that both arms have" in " ".join(text.split())


def test_two_single_runs_are_compared_image_by_image(tmp_path: Path) -> None:
    folders = [finished(tmp_path, "a", 0, 0.5), finished(tmp_path, "b", 0, 0.75, **UDA)]
    zeros, names = np.zeros(4, np.int64), np.array(["1", "2", "3", "4"])
    for folder, predicted in zip(folders, ([0, 0, 1, 1], [0, 1, 0, 0]), strict=True):
        sure = np.ones(4, np.float32)
        found = Predictions(
            names, zeros, np.array(predicted), sure, zeros, sure, zeros[:0], np.empty((0, 1, 1, 3), np.uint8)
        )
        (folder / FILE).write_bytes(Record(("cat", "dog"), "average, last", 9, {"test": found}).encode())
    assert "right here alone: 2 images; there alone: 1" in format_comparison(compare_runs(folders))


def test_many_differences_are_named_by_folder_and_listed_in_the_page(tmp_path: Path) -> None:
    other = {"student": {"lr": 0.2, "model": "conv"}, "teacher": {"lr": 0.3, "model": "conv"}, **UDA}
    folders = [finished(tmp_path, "first", 0, 0.5), finished(tmp_path, "second", 0, 0.6, **other)]
    compared = compare_runs(folders)
    assert [arm.name for arm in compared.table.arms] == ["first", "second"]
    assert ("student.lr", ["0.05", "0.2"]) in list(compared.table.settings)


def test_without_test_images_validation_is_compared_and_said(tmp_path: Path) -> None:
    folders = [finished(tmp_path, "a", 0, 0.5), finished(tmp_path, "b", 0, None, **UDA)]
    compared = compare_runs(folders)
    assert [list(arm.accuracies) for arm in compared.table.arms] == [[0.5], [0.5]]
    assert "validation accuracies" in compared.remarks[0]


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    first, again = finished(tmp_path, "a", 0, 0.5), finished(tmp_path, "b", 0, 0.6)
    with pytest.raises(ConfigError, match="same settings and seed"):
        compare_runs([first, again])
    with pytest.raises(ConfigError, match="two or more"):
        compare_runs([first])
    with pytest.raises(ConfigError, match=r"no config\.toml"):
        compare_runs([first, tmp_path])
    (again / "results.json").unlink()
    with pytest.raises(ConfigError, match="has no results"):
        compare_runs([first, again])


def test_the_command_prints_the_table_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [finished(tmp_path, "a", 0, 0.5), finished(tmp_path, "b", 0, 0.6, **UDA)]
    assert main(["compare", *map(str, folders)]) == 0
    shown = capsys.readouterr().out
    assert "60.0 %" in shown and f"report: {tmp_path / 'compare.html'}" in shown
    page = (tmp_path / "compare.html").read_text()
    assert "Minus" in page and "method.name" in page
    assert main(["compare", *map(str, folders), "--output", str(tmp_path / "no/x.html")]) == 5
