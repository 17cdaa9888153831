"""The arms of the demonstration are legal, and differ in what they say they differ in."""

from pathlib import Path

import pytest

from fastmpl.config import difference
from fastmpl.study import demo
from fastmpl.study.arms import Arm

ARMS = (*demo.FEW_ARMS, *demo.NOISY_ARMS, demo.gold_arm(Path("runs/demo")))


@pytest.mark.parametrize("arm", ARMS, ids=[arm.name for arm in ARMS])
def test_an_arm_has_the_data_the_student_and_the_steps_of_its_table(arm: Arm, tmp_path: Path) -> None:
    found, first = (each.config_of(1, tmp_path) for each in (arm, Arm(arm.name, arm.config)))
    changed = {key.split(".")[0] for key in difference(found, first)}
    assert changed <= {"method", "feedback", "finetune", "teacher"}


def test_gold_loss_correction_reads_a_run_of_its_own_seed_that_saw_no_trusted_image(tmp_path: Path) -> None:
    judge = demo.NOISY_ARMS[0].config_of(2, tmp_path)
    assert demo.gold_arm(tmp_path).config_of(2, tmp_path).teacher.model == str(tmp_path / judge.run.name)
    assert (judge.method.name, judge.finetune.steps, judge.run.seed) == ("supervised", 0, 2)
