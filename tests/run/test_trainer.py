"""A run as its user sees it: what it leaves in its folder, how it continues, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.commands.check import check
from fastmpl.config import load
from fastmpl.distributed.signals import Stopper
from fastmpl.errors import ConfigError, DivergedError, StorageError
from fastmpl.run import checkpoint, monitor, trainer
from fastmpl.run.folder import lock_folder
from fastmpl_kernels import library
from tests.run.short_runs import CONFIGS, short_config, stop_after, train_quietly, untimed_lines


@pytest.mark.parametrize("stop", [1, 7, 10, 19])
def test_a_stopped_run_continues_bit_for_bit(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = short_config(tmp_path / "whole"), short_config(tmp_path / "parts")
    train_quietly(whole)
    stop_after(stop, parts, monkeypatch)
    status = json.loads((tmp_path / "parts/small/STATUS.json").read_text())
    assert (status["state"], status["step"]) == ("interrupted", stop)
    train_quietly(parts)
    a, b = (checkpoint.read(tmp_path / name / "small/checkpoints/step-20") for name in ("whole", "parts"))
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert a.facts["data"] == b.facts["data"]
    assert a.facts["best"] == b.facts["best"]
    assert untimed_lines(tmp_path / "whole/small") == untimed_lines(tmp_path / "parts/small")


def test_lines_that_are_read_late_are_the_same_record_after_an_interruption_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose finished lines wait there: nothing is lost, and the order in the file is the same."""
    train_quietly(short_config(tmp_path / "read at once", run__log_every=2))
    monkeypatch.setattr(monitor, "lines_a_read", lambda device, log_every: 4)
    late = short_config(tmp_path / "read late", run__log_every=2)
    stop_after(7, late, monkeypatch)
    assert [line["step"] for line in untimed_lines(tmp_path / "read late/small")] == [2, 4, 6]
    train_quietly(late)
    assert untimed_lines(tmp_path / "read late/small") == untimed_lines(tmp_path / "read at once/small")


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune__steps": 8, "finetune__batch": 16, "finetune__lr": 0.01},
        {"feedback__kind": "scalar", "method__targets": "sampled", "feedback__baseline": 0.9, "student__dropout": 0.2},
        {"student__optimiser": "adamw", "student__lr": 1e-3, "student__clip": 0.5, "system__precision": "bf16"},
    ],
    ids=["finetune", "scalar", "adamw bf16"],
)
def test_every_part_of_the_state_is_continued(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = short_config(tmp_path / "whole", **changes), short_config(tmp_path / "parts", **changes)
    train_quietly(whole)
    stop_after(7, parts, monkeypatch)
    train_quietly(parts)
    last = f"small/checkpoints/step-{whole.run.steps + whole.finetune.steps}"
    a, b = (checkpoint.read(tmp_path / name / last) for name in ("whole", "parts"))
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_a_run_stopped_in_its_fine_tuning_continues_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"finetune__steps": 8, "finetune__batch": 16, "run__checkpoint_every": 24}
    whole = short_config(tmp_path / "whole", **changes)
    results = train_quietly(whole)
    parts = short_config(tmp_path / "parts", **changes)
    train_quietly(parts)
    for step in (28, 20):  # what a kill between steps 24 and 28 leaves
        path = tmp_path / f"parts/small/checkpoints/step-{step}"
        assert path.is_dir()
        path.rename(tmp_path / f"step-{step}")
    assert train_quietly(parts).finetuned == results.finetuned


def test_a_finished_run_gives_its_results_again_without_training(tmp_path: Path) -> None:
    first, second = train_quietly(short_config(tmp_path)), train_quietly(short_config(tmp_path))
    assert second._replace(seconds=0) == first._replace(seconds=0)


def test_a_run_leaves_what_a_person_and_a_program_need(tmp_path: Path) -> None:
    results = train_quietly(short_config(tmp_path), report=True)
    folder = tmp_path / "small"
    assert {"config.toml", "metrics.jsonl", "results.json", "STATUS.json", "student.safetensors", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert load(folder / "config.toml") == short_config(tmp_path)
    assert json.loads((folder / "results.json").read_text())["last"] == results.last
    assert results.last.keys() == {"student", "average", "teacher"}
    assert results.selected is not None
    assert {"validation", "test", "step", "network", "score", "loss"} == results.selected.keys()


def test_a_bad_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = short_config(tmp_path, run__checkpoint_every=10)
    first = train_quietly(settings)
    newest = tmp_path / "small/checkpoints/step-20" / checkpoint.TENSORS
    newest.write_bytes(newest.read_bytes()[:-1])
    results = trainer.train(settings, report=False)
    output = capsys.readouterr().out
    assert str(newest) in output
    assert "Continuing at step 10" in output
    assert results.last == first.last


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path: Path) -> None:
    train_quietly(short_config(tmp_path))
    with pytest.raises(ConfigError, match=r"other settings \(student\.lr\)"):
        train_quietly(short_config(tmp_path, student__lr=0.2))
    train_quietly(short_config(tmp_path, run__log_every=3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which graph = on asks for")
def test_a_graph_without_a_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = short_config(tmp_path, system__graph="on")
    for start in (lambda: train_quietly(config), lambda: list(check(config))):
        with pytest.raises(ConfigError, match="needs a CUDA device, and there is none"):
            start()
    assert not (tmp_path / "small").exists()


def test_starting_over_keeps_the_old_folder_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_quietly(short_config(tmp_path))
    trainer.train(short_config(tmp_path, student__lr=0.2), resume="never", report=False)
    assert f"The run that was in {tmp_path / 'small'} is kept in {tmp_path / 'small.old-1'}." in capsys.readouterr().out
    assert (tmp_path / "small.old-1" / "results.json").is_file()
    assert load(tmp_path / "small/config.toml").student.lr == 0.2


def test_a_second_run_in_one_folder_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "small"), pytest.raises(StorageError, match=f"in use by process {os.getpid()} on "):
        train_quietly(short_config(tmp_path))


def test_a_run_that_diverges_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        train_quietly(
            short_config(tmp_path, student__lr=1000.0, student__weight_decay=1.0, teacher__lr=1000.0, run__steps=60)
        )


def test_a_second_interrupt_ends_at_once() -> None:
    program = (
        "import os, signal, sys\nfrom fastmpl.distributed.signals import Stopper\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits that it is ignored
        "with Stopper():\n    os.kill(os.getpid(), signal.SIGINT)\n    os.kill(os.getpid(), signal.SIGINT)\nsys.exit(0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 130


def test_signals_are_handled_as_before_after_a_run() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopper() as stopper:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopper.by is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("digits*.toml")))
def test_every_method_has_a_config_that_runs_on_digits(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    if name == "digits_distillation":
        train_quietly(short_config(tmp_path, "digits_supervised", run__name="teacher"))
        changes = {"teacher__model": str(tmp_path / "teacher")}
    results = train_quietly(short_config(tmp_path, name, **changes))
    assert 0 <= results.last["student"]["test"] <= 1


def test_kernels_of_other_sources_are_one_sentence_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.cpp").write_text("// what the library was not built from")
    monkeypatch.setattr(library, "SOURCES", tmp_path)
    if not library._path().is_file():
        pytest.skip("the native library was not built: make .venv/.built")
    library.library.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"built from other sources.*run `make"):
            train_quietly(short_config(tmp_path))
    finally:
        library.library.cache_clear()
