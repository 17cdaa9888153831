"""fastmpl ablate: which arms, on which draws, and what its sentence says."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from fastmpl.config import Config, load, save
from fastmpl.errors import ConfigError
from fastmpl.paired_statistics import Interval, paired_p
from fastmpl.study import ablation, arms

DIGITS = Path(__file__).parents[2] / "launch" / "configs" / "digits.toml"


def config(folder: Path, **changes: Any) -> Config:
    small = {"run.output": str(folder), "run.steps": 3, "data.batch_unlabelled": 16}
    return load(DIGITS, small | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("targets", "kind", "expected"),
    [
        ("soft", "exact", ["off", "exact", "shuffled", "flipped"]),
        ("sampled", "scalar", ["off", "per_example", "scalar", "shuffled", "flipped"]),
        ("argmax", "off", ["off", "scalar", "shuffled", "flipped"]),
    ],
)
def test_the_arms_are_every_legal_kind_and_the_controls(
    targets: str, kind: str, expected: list[str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {} if kind == "off" else {"feedback.every": 2}
    settings |= {"feedback.baseline": 0.9} if kind == "scalar" else {}
    asked = config(tmp_path, **{"method.targets": targets, "feedback.kind": kind, **settings})
    built = ablation.build_arms(asked, save(asked, tmp_path / "config.toml"))
    assert [arm.name for arm in built] == expected
    configs = {arm.name: arm.config_of(1, tmp_path) for arm in built}  # each is legal
    for name, made in configs.items():
        assert made.feedback.control == (name if name in ("shuffled", "flipped") else "none")
        assert made.method == asked.method and made.data == asked.data and made.run.seed == 1
    if kind != "off":
        assert configs["flipped"].feedback.kind == kind
    assert configs["off"].feedback.kind == "off"


def test_a_method_without_feedback_has_nothing_to_ablate(tmp_path: Path) -> None:
    asked = config(tmp_path, **{"method.name": "uda", "feedback.kind": "off"})
    with pytest.raises(ConfigError, match='"uda" has none'):
        ablation.ablate(asked, tmp_path, 2, print)
    with pytest.raises(ConfigError, match="at least 2 seeds"):
        ablation.ablate(config(tmp_path), tmp_path, 1, print)


def test_a_finished_ablation_is_read_and_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = config(tmp_path, **{"finetune.steps": 2, "finetune.batch": 16})
    said: list[str] = []
    first = ablation.ablate(asked, tmp_path / "a", 2, said.append, jobs=2)
    assert said[0] == f"4 arms x 2 seeds: 8 runs to train, 2 at a time, in {tmp_path / 'a'}"
    ended = [line for line in said[1:] if not line.startswith("training")]
    assert [line[:7] for line in ended] == [f"{n} of 8 " for n in range(1, 9)]
    assert all("left" in line for line in ended[:-1]) and "left" not in ended[-1]
    said.clear()
    again = ablation.ablate(asked, tmp_path / "a", 2, said.append)
    assert said == [] and again == first
    assert list(first) == ["Test accuracy", "After fine-tuning"]
    assert json.loads((tmp_path / "a/ablation.json").read_text())["Test accuracy"][0]["name"] == "off"
    page = ablation.run(asked, tmp_path / "a", 2)
    assert "flipped" in page.read_text() and "flipped" in capsys.readouterr().out


def test_a_long_run_is_told_of_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "TELL_EVERY", 0.05)
    said: list[str] = []
    asked = config(tmp_path, **{"run.steps": 30, "run.log_every": 1})
    path = save(asked, tmp_path / "config.toml")
    arms.run_arms([arms.Arm("off", path, {"feedback.kind": "off"})], 1, tmp_path, said.append, jobs=1)
    assert "training  the first runs start" in said
    assert any(line.startswith("training  off, seed 0: step ") and line.endswith(" of 30") for line in said)


def row(name: str, low: float, high: float) -> ablation.AblationRow:
    return ablation.AblationRow(name, [0.9, 0.9], Interval((low + high) / 2, low, high), 0.01)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.03, "helps"), (-0.03, -0.01, "harms"), (-0.01, 0.02, "cannot be told from none")],
)
def test_the_sentence_claims_no_more_than_the_interval(low: float, high: float, said: str) -> None:
    assert said in ablation.verdict([ablation.AblationRow("off", [0.9, 0.9], None, 1.0), row("exact", low, high)])


def test_the_p_value_is_that_of_scipys_paired_test() -> None:
    a, b = [0.81, 0.84, 0.79, 0.90], [0.80, 0.80, 0.80, 0.85]
    assert paired_p(a, b) == pytest.approx(ttest_rel(a, b).pvalue)
    assert paired_p(a, a) == 1.0
    assert paired_p([1.0], [0.5]) != paired_p([1.0], [0.5])  # NaN
