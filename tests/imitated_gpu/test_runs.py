"""Whole runs on the imitated GPU: loader, steps, evaluation, checkpoints, and what continues them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.config import Config
from fastmpl.report import write_report
from fastmpl.run import checkpoint, training
from fastmpl.step.step_graph import GraphedStep
from fastmpl_kernels import dispatch
from tests.imitated_gpu.dali import imitate_dali
from tests.imitated_gpu.device import ImitatedGpu
from tests.imitated_gpu.steps import WARMUP
from tests.imitated_gpu.test_execution import read_in_the_update
from tests.run.short_runs import short_config, stop_after, train_quietly, untimed_lines


@pytest.fixture
def dali(gpu: ImitatedGpu) -> Iterator[ImitatedGpu]:
    with imitate_dali(gpu):
        yield gpu


def small_run(folder: Path, **changes: object) -> Config:
    sizes = {
        "run__steps": 12,
        "run__evaluate_every": 6,
        "data__shift": 0.125,
        "student__width": 16,
        "teacher__width": 16,
    }
    return short_config(folder, **(sizes | changes))


def assert_same_run(a: Path, b: Path) -> None:
    """Same numbers in every tensor of the last checkpoint, and the same lines but for timings."""
    first, second = (checkpoint.read(folder / "small/checkpoints/step-12") for folder in (a, b))
    assert first.tensors.keys() == second.tensors.keys()
    for name, value in first.tensors.items():
        assert torch.equal(value, second.tensors[name]), name
    assert untimed_lines(a / "small") == untimed_lines(b / "small")


def test_a_run_with_its_loader_on_a_stream_of_its_own_equals_an_eager_one_and_resumes(
    dali: ImitatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_quietly(small_run(tmp_path / "eager", system__graph="off"))
    assert not dali.graphs
    results = train_quietly(small_run(tmp_path / "graphed"))
    (graph,) = dali.graphs
    assert graph.replays == 10
    assert 0 <= results.last["student"]["test"] <= 1
    assert_same_run(tmp_path / "eager", tmp_path / "graphed")
    parts = small_run(tmp_path / "parts")
    stop_after(7, parts, monkeypatch)
    train_quietly(parts)
    assert_same_run(tmp_path / "eager", tmp_path / "parts")


@pytest.mark.parametrize("stops", [True, False])
def test_no_graph_outlives_its_run(
    stops: bool, dali: ImitatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL ends no group of ranks while one lives. `graphs` keeps them here, as an error keeps the frames it passed."""
    config = small_run(tmp_path, run__steps=6, run__evaluate_every=6)
    if stops:
        stop_after(5, config, monkeypatch)
    else:
        train_quietly(config)
    (graph,) = dali.graphs
    assert graph.replays
    assert not graph.calls


def test_a_supervised_step_is_captured_without_unlabelled_images(dali: ImitatedGpu, tmp_path: Path) -> None:
    supervised: dict[str, object] = {"method__name": "supervised", "feedback__kind": "off"}
    train_quietly(small_run(tmp_path / "eager", system__graph="off", **supervised))
    train_quietly(small_run(tmp_path / "graphed", **supervised))
    (graph,) = dali.graphs
    assert graph.replays == 10
    assert_same_run(tmp_path / "eager", tmp_path / "graphed")


def test_a_step_of_gold_correction_is_captured_with_the_corruption_that_its_run_estimated(
    dali: ImitatedGpu, tmp_path: Path
) -> None:
    data: dict[str, object] = {"data__trusted": 20, "data__batch_trusted": 10, "feedback__kind": "off"}
    train_quietly(small_run(tmp_path, run__name="judge", method__name="supervised", **data))
    gold: dict[str, object] = {"method__name": "gold_correction", "teacher__model": str(tmp_path / "judge"), **data}
    train_quietly(small_run(tmp_path / "eager", system__graph="off", **gold))
    train_quietly(small_run(tmp_path / "graphed", **gold))
    graph = dali.graphs[-1]
    assert graph.replays == 10
    assert_same_run(tmp_path / "eager", tmp_path / "graphed")


def test_a_run_whose_capture_fails_trains_eagerly_and_says_so_in_status_and_report(
    dali: ImitatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_quietly(small_run(tmp_path / "eager", system__graph="off"))
    read_in_the_update(monkeypatch)
    train_quietly(small_run(tmp_path / "refused"))
    assert_same_run(tmp_path / "eager", tmp_path / "refused")
    status = json.loads((tmp_path / "refused/small/STATUS.json").read_text())
    (note,) = status["notes"]
    assert status["state"] == "done"
    assert "cannot be captured as a CUDA graph" in note
    assert "reads the device" in note
    write_report(tmp_path / "refused/small")
    assert "cannot be captured as a CUDA graph" in (tmp_path / "refused/small/report.html").read_text()


def test_between_metrics_and_checkpoints_the_host_never_waits_for_the_device(
    dali: ImitatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to load a batch nor to take a step, once the step is captured."""
    taken = 0

    def forbid_waits(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal taken
            taken += 1
            dali.sync_debug_mode = "error" if taken > 2 * WARMUP + 4 else "default"
            try:
                return original(*args)
            finally:
                dali.sync_debug_mode = "default"

        return call

    monkeypatch.setattr(training.Training, "_next_batch", forbid_waits(training.Training._next_batch))
    monkeypatch.setattr(GraphedStep, "__call__", forbid_waits(GraphedStep.__call__))
    train_quietly(small_run(tmp_path))
    assert taken == 2 * 12


def test_a_kernel_that_does_not_compile_is_said_once_and_its_reference_serves(
    dali: ImitatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted beside the loader: the launch of one op fails as it does where Triton cannot compile its kernel."""

    def fail() -> None:
        raise ValueError("no such instruction")

    def launch_it(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with pytest.raises(dispatch.KernelFailure):
                dispatch.launch("soft_cross_entropy", torch.ones(1), fail)
            return original(*args)

        return call

    monkeypatch.setattr(training.Training, "_next_batch", launch_it(training.Training._next_batch))
    try:
        train_quietly(small_run(tmp_path, run__steps=3, run__evaluate_every=3, system__graph="off"))
    finally:
        dispatch.forget_fallbacks()
    (note,) = json.loads((tmp_path / "small/STATUS.json").read_text())["notes"]
    assert "Triton kernel of soft_cross_entropy cannot run here (ValueError: no such instruction)" in note
