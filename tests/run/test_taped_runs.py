"""Which runs on a CPU take their steps from a tape, and that it changes none of their numbers."""

from pathlib import Path

import pytest
import torch

from fastmpl.run import checkpoint, graph_choice
from fastmpl.run.graph_choice import choose_execution
from fastmpl.step.eager import EagerStep
from fastmpl.step.step_graph import WARMUP
from fastmpl.step.taped_step import TapedStep
from tests.run.short_runs import short_config, train_quietly, untimed_lines
from tests.step.captured import config, trainee

CPU = torch.device("cpu")


def test_a_run_from_a_tape_leaves_what_an_eager_run_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    call = TapedStep.__call__

    def note(self: TapedStep, batch: object) -> object:
        found = call(self, batch)  # type: ignore[arg-type]
        given.append(bool(self._tapes))
        return found

    monkeypatch.setattr(TapedStep, "__call__", note)
    for graph in ("auto", "off"):
        train_quietly(short_config(tmp_path / graph, system__graph=graph))
    assert given == [False] * WARMUP + [True] * (20 - WARMUP)
    a, b = (checkpoint.read(tmp_path / graph / "small/checkpoints/step-20").tensors for graph in ("auto", "off"))
    assert all(torch.equal(a[name], b[name]) for name in a | b)
    assert untimed_lines(tmp_path / "auto/small") == untimed_lines(tmp_path / "off/small")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, TapedStep),
        ({"system__graph": "on"}, TapedStep),
        ({"system__graph": "off"}, EagerStep),
        ({"system__compile": True}, EagerStep),
    ],
    ids=str,
)
def test_a_tape_is_for_steps_that_it_sees_whole(changes: dict[str, object], kind: type) -> None:
    settings = config(student__model="perceptron", teacher__model="perceptron", **changes)
    plain = config(student__model="perceptron", teacher__model="perceptron")
    assert type(choose_execution(trainee(plain, "cpu"), settings, CPU, print, decodes=False)) is kind


def test_a_large_state_is_not_copied_for_a_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(student__model="perceptron", teacher__model="perceptron")
    monkeypatch.setattr(graph_choice, "LARGEST_TAPED", 1000)
    assert type(choose_execution(trainee(settings, "cpu"), settings, CPU, print, decodes=False)) is EagerStep
