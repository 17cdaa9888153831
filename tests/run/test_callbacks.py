"""Callbacks hear of every step, evaluation and checkpoint, change no number, and stop a run by what they raise."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastmpl
from fastmpl.run.callbacks import Callback, CallbackError, CheckpointSaved, StepDone
from fastmpl.telemetry.metrics_file import Evaluation
from tests.run.short_runs import short_config, untimed_lines

STEPS = 4


def disturb(event: object) -> None:
    """Sets whatever torch keeps for the whole process."""
    torch.manual_seed(7)
    torch.rand(3)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)


def test_a_run_with_callbacks_is_bit_equal_to_one_without(tmp_path: Path) -> None:
    settings = {"run__steps": STEPS, "run__evaluate_every": 2, "run__checkpoint_every": 2, "student__dropout": 0.1}
    plain, watched = (short_config(tmp_path, **settings, run__name=name) for name in ("plain", "watched"))
    heard: list[object] = []
    hears = Callback(on_step=heard.append, on_evaluation=heard.append, on_checkpoint=heard.append)
    disturbs = Callback(on_step=disturb, on_evaluation=disturb, on_checkpoint=disturb)
    expected = fastmpl.train(plain, quiet=True)
    found = fastmpl.train(watched, quiet=True, callbacks=[hears, disturbs])
    assert found.last == expected.last
    assert untimed_lines(tmp_path / "watched") == untimed_lines(tmp_path / "plain")
    weights = [load_file(tmp_path / name / "student.safetensors") for name in ("plain", "watched")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    assert [e for e in heard if isinstance(e, StepDone)] == [StepDone(n, STEPS) for n in range(1, STEPS + 1)]
    folders = [tmp_path / "watched" / "checkpoints" / f"step-{n}" for n in (2, 4)]
    assert [e for e in heard if isinstance(e, CheckpointSaved)] == [CheckpointSaved(2, folders[0]), (4, folders[1])]
    assert folders[1].is_dir()
    scores = [e for e in heard if isinstance(e, Evaluation)]
    lines = [line for line in untimed_lines(tmp_path / "watched") if line["kind"] == "evaluation"]
    assert [(e.step, e.network, e.accuracy) for e in scores] == [
        (d["step"], d["network"], d["accuracy"]) for d in lines
    ]


def test_what_a_callback_raises_stops_the_run_with_its_name(tmp_path: Path) -> None:
    def refuses_the_third(event: StepDone) -> None:
        if event.step == 3:
            raise ValueError("enough")

    config = short_config(tmp_path, run__steps=STEPS, run__checkpoint_every=2)
    with pytest.raises(CallbackError, match=r"refuses_the_third stopped the run after step 3: ValueError: enough"):
        fastmpl.train(config, quiet=True, callbacks=[Callback(on_step=refuses_the_third)])
    status = json.loads((tmp_path / config.run.name / "STATUS.json").read_text())
    assert status["state"] == "failed"
    assert "refuses_the_third" in status["message"]
    assert fastmpl.train(config, quiet=True).steps == STEPS  # from the checkpoint of step 2
