"""Checkpoints written beside training: exact, one at a time, never silent about an error, small in time and memory."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bench_saving import measure_loop, measure_memory
from fastmpl.distributed.ranks import ALONE
from fastmpl.errors import StorageError
from fastmpl.run import checkpoint, saver
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.folder import read_status
from fastmpl.run.host_memory import available_bytes
from fastmpl.run.saver import Saver
from tests.run.short_runs import short_config, train_quietly

TENSORS = {"weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), "count": torch.tensor(3)}


class Gate:
    """Holds a save until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        original = checkpoint.save

        def save(*arguments: Any) -> Path:
            self.reached.set()
            assert self.opened.wait(20)
            return original(*arguments)

        monkeypatch.setattr(checkpoint, "save", save)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def make_saver(folder: Path, notes: list[str] | None = None) -> Saver:
    return Saver(folder, ALONE, 1, 2, [].append if notes is None else notes.append)


def state(step: int) -> Checkpoint:
    return Checkpoint(step, {name: tensor.clone() for name, tensor in TENSORS.items()}, {"best": {"step": 1}})


def test_what_changes_while_a_save_is_written_is_not_in_it(tmp_path: Path, gate: Gate) -> None:
    here, made = make_saver(tmp_path), state(3)
    here.begin(made, None)
    assert gate.reached.wait(20)
    assert here.take() is None  # training goes on
    made.tensors["weight"].zero_()
    made.tensors["count"].add_(1)
    made.facts["best"]["step"] = 9
    gate.opened.set()
    saved = here.take(wait=True)
    assert saved is not None
    assert (saved.step, saved.error, here.take()) == (3, None, None)
    read = checkpoint.read(tmp_path / "step-3")
    assert all(torch.equal(read.tensors[name], value) for name, value in TENSORS.items())
    assert read.facts == {"best": {"step": 1}}


def test_the_next_snapshot_is_that_of_its_own_moment(tmp_path: Path) -> None:
    """It is copied over the last one, also where a tensor has another shape by then."""
    here, made = make_saver(tmp_path), state(1)
    for step in (1, 2, 3):
        made.tensors["weight"].fill_(step)
        made.tensors["grown"] = torch.full((step,), float(step))
        here.begin(made._replace(step=step), None)
        assert here.take(wait=True) == (step, None)
    assert checkpoint.steps(tmp_path) == [3, 2]  # two are kept
    for step in (2, 3):
        read = checkpoint.read(tmp_path / f"step-{step}").tensors
        assert bool((read["weight"] == step).all())
        assert read["grown"].tolist() == [step] * step


def test_what_a_save_raised_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_saver(tmp_path)
    for error in (StorageError("The disk is full."), RuntimeError("Connection closed by peer")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(checkpoint, "save", fail)
        here.begin(state(1), None)
        if isinstance(error, StorageError):
            assert here.take(wait=True) == (1, error)
        else:
            with pytest.raises(RuntimeError, match="Connection closed"):
                here.take(wait=True)
        assert here.take(wait=True) is None


def test_a_state_that_is_large_for_the_free_memory_is_saved_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    here = make_saver(tmp_path, notes)
    monkeypatch.setattr(saver, "available_bytes", lambda: 100)
    for step in (1, 2):
        here.begin(state(step), None)
        assert checkpoint.steps(tmp_path)[0] == step  # before anything else is asked
        assert here.take() == (step, None)
    assert notes == [
        "Checkpoints of 0.0 GB are written while training waits: a copy would take more than 10% of the free host memory."
    ]


def test_a_large_state_on_a_cpu_is_saved_in_place_however_much_memory_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    here = make_saver(tmp_path, notes)
    monkeypatch.setattr(saver, "TWICE", 10)
    here.begin(state(1), None)
    assert checkpoint.steps(tmp_path) == [1]
    assert notes == ["Checkpoints of 0.0 GB are written while training waits: host memory would hold them twice."]


def test_a_run_whose_saves_are_slow_leaves_every_checkpoint_and_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = short_config(tmp_path / "whole")
    train_quietly(whole)
    config = short_config(tmp_path, run__checkpoint_every=4)
    original = checkpoint._write

    def write(path: Path, pieces: Any) -> Any:
        threading.Event().wait(0.05)
        return original(path, pieces)

    monkeypatch.setattr(checkpoint, "_write", write)
    train_quietly(config)
    folder = tmp_path / "small"
    assert checkpoint.steps(folder / "checkpoints") == [20, 16, 12, 8, 4]
    assert read_status(folder)["state"] == "done"
    found, expected = (
        checkpoint.read(path / "small/checkpoints/step-20").tensors for path in (tmp_path, tmp_path / "whole")
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_save_costs_the_loop_less_than_a_hundredth_and_less_than_a_step() -> None:
    """At the interval of the demonstration; processor time, which other programs do not change."""
    found = measure_loop(301)
    assert found["saves"] == 1
    assert float(str(found["share"])) < 0.01
    assert float(str(found["longest_in_steps"])) < 1


@pytest.mark.parametrize("how", ["in place", "saver"])
@pytest.mark.parametrize("parameters", [20_000_000, pytest.param(500_000_000, marks=pytest.mark.slow)])
def test_a_save_holds_one_copy_of_the_state_or_none(how: str, parameters: int, tmp_path: Path) -> None:
    if available_bytes() < 3 * 4 * parameters:
        pytest.skip("free three times the memory of the state")
    found = measure_memory(parameters, how, tmp_path)
    assert float(str(found["grown"])) < (1.2 if found["beside"] else 0.2)
    assert not (found["beside"] and parameters == 500_000_000)  # host memory would hold the state twice


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    machine, container = tmp_path / "meminfo", tmp_path / "cgroup"
    machine.write_text("MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable:     600 kB\n")
    assert available_bytes(machine, container) == 600 << 10
    container.mkdir()
    (container / "memory.current").write_text("1000\n")
    (container / "memory.max").write_text("max\n")
    assert available_bytes(machine, container) == 600 << 10
    (container / "memory.max").write_text("5000\n")
    assert available_bytes(machine, container) == 4000
    (container / "memory.max").write_text("500\n")
    assert available_bytes(machine, container) == 0
