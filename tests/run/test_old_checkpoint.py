"""A run that version 0.1.0 left at step 10 of 20, before the modules moved: today's program finishes it."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastmpl.config import load
from fastmpl.run.student_file import load_classifier
from fastmpl.run.trainer import train

WRITTEN = Path(__file__).with_name("written_by_0_1_0")  # `fastmpl train launch/configs/digits.toml`, width 4, 20 steps


def test_a_run_of_version_0_1_0_continues_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(WRITTEN / "config.toml", folder)
    shutil.copytree(WRITTEN / "step-10", folder / "checkpoints" / "step-10")
    config = load(folder / "config.toml", {"run.output": str(tmp_path)})
    results = train(config, quiet=True, report=False)
    assert results.steps == 20
    continued, uninterrupted = load_file(folder / "student.safetensors"), load_file(WRITTEN / "student.safetensors")
    assert continued.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        torch.testing.assert_close(continued[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_student_of_a_run_of_version_0_1_0_is_read() -> None:
    assert load_classifier(WRITTEN).classes == tuple("0123456789")
