"""`fastmpl ablate --arms`: what each arm changes, and a comparison that shares one store of features."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastmpl.config import Config, load, save
from fastmpl.errors import ConfigError
from fastmpl.run.trainer import train
from fastmpl.study import ablation
from fastmpl.study.ways import CHANGES, build_ways

CONFIGS = Path(__file__).parents[2] / "launch" / "configs"


def config(folder: Path, **changes: Any) -> Config:
    small = {
        "run.output": str(folder),
        "run.steps": 4,
        "data.batch_unlabelled": 16,
        "student.width": 8,
        "teacher.width": 8,
    }
    return load(CONFIGS / "digits.toml", small | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize("method", ["mpl", "uda", "supervised"])
def test_every_arm_is_legal_and_starts_from_the_weights(method: str, tmp_path: Path) -> None:
    base: dict[str, Any] = {"feedback__every": 4} if method == "mpl" else {"feedback__kind": "off"}
    asked = config(tmp_path, method__name=method, student__pretrained="runs/base", finetune__steps=3, **base)
    ways = [way for way in CHANGES if way != "reduced_mpl"]
    made = {arm.name: arm.config_of(2, tmp_path) for arm in build_ways(asked, save(asked, tmp_path / "c.toml"), ways)}
    assert all(each.student.pretrained == "runs/base" and each.data == asked.data for each in made.values())
    assert made["lora"].student.adapter == "lora:8" and made["supervised"].student.adapter == ""
    assert made["mpl"].teacher.pretrained == "runs/base" and made["mpl"].feedback.kind == "exact"
    assert made["uda"].method.name == "uda" and made["uda"].feedback.kind == "off"
    assert made["probe"].finetune.steps == 0 and made["supervised"].finetune.steps == 3


def test_reduced_mpl_keeps_its_store(tmp_path: Path) -> None:
    asked = config(tmp_path, method__name="reduced_mpl", data__store="stores/x", student__pretrained="runs/base")
    ways = build_ways(asked, save(asked, tmp_path / "c.toml"), ["supervised", "reduced_mpl"])
    supervised, reduced = (arm.config_of(0, tmp_path).data.store for arm in ways)
    assert (supervised, reduced) == ("", "stores/x")


def test_arms_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    asked = config(tmp_path)
    with pytest.raises(ConfigError, match=r"--arms lora needs student\.pretrained"):
        ablation.ablate(asked, tmp_path, 2, print, ways=["supervised", "lora"])
    with pytest.raises(ConfigError, match="at least two arms, each once"):
        ablation.ablate(asked, tmp_path, 2, print, ways=["uda", "uda"])


def test_probes_of_all_seeds_share_one_store_and_finished_arms_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = config(tmp_path, run__name="base", method__name="supervised", feedback__kind="off")
    train(base, quiet=True, report=False)
    asked = config(tmp_path, student__pretrained=str(tmp_path / "base"))
    ways = ("probe", "lora", "mpl")
    first = ablation.ablate(asked, tmp_path / "a", 2, print, jobs=2, ways=ways)
    assert len(list((tmp_path / "a").glob("features-*"))) == 1
    assert [row.name for row in first["Test accuracy"]] == list(ways)
    assert first["Test accuracy"][0].difference is None and first["Test accuracy"][2].difference is not None
    assert json.loads((tmp_path / "a/ablation.json").read_text())["Test accuracy"][0]["name"] == "probe"
    capsys.readouterr()
    page = ablation.run(asked, tmp_path / "a", 2, ways=ways)
    said = capsys.readouterr().out
    assert "runs to train" not in said and "minus probe [95 % interval]" in said and "On this data" in said
    assert "lora" in page.read_text()
