"""A run that version 0.1.0 left at step 10 of 20, before the modules moved: today's program finishes it."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastmpl.commands.evaluate import evaluate
from fastmpl.config import load
from fastmpl.run.classifier import load_classifier
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
    uninterrupted = load_file(WRITTEN / "student.safetensors")  # that version left the average of the last step
    continued = load_classifier(folder, "average").module.state_dict()
    assert continued.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        torch.testing.assert_close(continued[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_student_of_a_run_of_version_0_1_0_is_read() -> None:
    assert load_classifier(WRITTEN).classes == tuple("0123456789")


def test_its_checkpoint_kept_no_weights_of_the_best_student_so_selection_begins_where_it_continues(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(WRITTEN / "config.toml", folder)
    shutil.copytree(WRITTEN / "step-10", folder / "checkpoints" / "step-10")
    facts = json.loads((WRITTEN / "step-10" / "facts.json").read_text())
    assert facts["best"] is not None
    results = train(load(folder / "config.toml", {"run.output": str(tmp_path)}), quiet=True, report=False)
    assert results.selected is not None and results.selected["step"] > 10
    assert results.headline["network"] == "selected"
    found = {one.name: one.accuracy for one in evaluate(folder).sets}
    assert found == {split: results.headline[split] for split in ("validation", "test")}


def test_a_folder_of_that_version_says_what_its_file_holds() -> None:
    assert load_classifier(WRITTEN).description == "averaged student of step 20"
