"""Runs on points: one that is stopped by a signal, and one that loses its last checkpoint, end as one that went through."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.loading import source_config
from benchmarks.gpu.runs import Form
from benchmarks.records import Row
from fastmpl.config import Config
from fastmpl.errors import Interrupted
from fastmpl.run.trainer import train

STEPS, EVERY = 200, 40
SAMPLED: Form = {"method.targets": "sampled", "feedback.kind": "scalar"}


def _config(folder: Path, name: str, form: Form) -> Config:
    rhythm = {"run.steps": STEPS, "run.checkpoint_every": EVERY, "run.evaluate_every": EVERY, "run.keep": 9}
    return source_config("points", {"run.output": str(folder), "run.name": name, **rhythm, **form})


def _student(config: Config) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(config.run.output) / config.run.name / "student.safetensors")


def _train(config: Config) -> None:
    train(config, quiet=True, report=False)


def _stop_at_first_checkpoint(config: Config) -> None:
    """Trains until SIGTERM, which another thread sends once the first checkpoint is there."""
    checkpoints = Path(config.run.output) / config.run.name / "checkpoints"
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if (checkpoints / f"step-{EVERY}").is_dir():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        _train(config)
    except Interrupted:
        return
    finally:
        ended.set()
        watcher.join()
    raise AssertionError("the run ended before SIGTERM stopped it")


def _lose_last_checkpoint(config: Config) -> None:
    """Trains to the end; then everything after the last checkpoint but one is gone."""
    _train(config)
    folder = Path(config.run.output) / config.run.name
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS}")
    (folder / "student.safetensors").unlink()


def check_resumed(form: Form, interrupt: Callable[[Config], None]) -> Row:
    """The student of a run that went through, and of one that was interrupted and continued: the same bits."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        whole, broken = (_config(Path(place), name, form) for name in ("whole", "broken"))
        _train(whole)
        seconds = time.perf_counter() - began
        interrupt(broken)
        _train(broken)
        expected, found = _student(whole), _student(broken)
    differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    return {"passed": not differing, "why": ", ".join(differing[:3]), "steps": STEPS, "seconds_of_a_run": seconds}


def cases(setting: Setting) -> Cases:
    forms: dict[str, Form] = {"exact": {}, "scalar": SAMPLED, "exact, eager": {"system.graph": "off"}}
    ways = {"stopped by SIGTERM": _stop_at_first_checkpoint, "without its last checkpoint": _lose_last_checkpoint}
    return [
        Case(f"{name}: {how}", partial(check_resumed, form, interrupt), 60)
        for name, form in forms.items()
        for how, interrupt in ways.items()
    ]
