"""Trains arms x seeds: one configuration under different settings, on identical splits and random draws.

Draws are keyed by seed, step and image. Two arms of one seed see the same images, views and initial weights, so their
difference is due to the setting. Each run has an ordinary run folder and a process; a finished one is not run again.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from fastmpl.config import Config, difference, load
from fastmpl.telemetry.metrics import read_lines
from fastmpl.telemetry.progress import duration

Outcome = dict[str, Any]  # a run's results.json
TELL_EVERY = 30.0  # seconds


class Arm(NamedTuple):
    """A configuration file, and what this arm changes in it; `{seed}` in a text stands for the run's seed."""

    name: str
    config: Path
    changes: Mapping[str, Any] = {}

    def config_of(self, seed: int, folder: Path) -> Config:
        """The arm's run of one seed, in a folder of its own."""
        run = {"run.seed": seed, "run.name": f"{self.name}-{seed}", "run.output": str(folder)}
        changes = {k: v.replace("{seed}", str(seed)) if isinstance(v, str) else v for k, v in self.changes.items()}
        return load(self.config, {**changes, **run})


class _RunKey(NamedTuple):
    arm: str
    seed: int


def run_arms(
    arms: Sequence[Arm], seeds: int, folder: Path, tell: Callable[[str], None], jobs: int | None = None
) -> dict[str, list[Outcome]]:
    """Trains every arm with seeds 0, 1, ...; returns the results by the arm's name.

    `jobs` runs train at a time, each with one thread. `tell` gets a line at the start, after each run, and every half
    minute in which none ends. Raises what a run raised, after the others have ended.
    """
    configs = {_RunKey(arm.name, seed): arm.config_of(seed, folder) for arm in arms for seed in range(seeds)}
    outcomes = {key: found for key, config in configs.items() if (found := _read_finished(config)) is not None}
    missing = {key: config for key, config in configs.items() if key not in outcomes}
    if missing:
        os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
        jobs = min(jobs or os.cpu_count() or 1, len(missing))
        finished = f" ({len(outcomes)} are finished already)" if outcomes else ""
        tell(f"{len(arms)} arms x {seeds} seeds: {len(missing)} runs to train{finished}, {jobs} at a time, in {folder}")
        outcomes |= _train_all(missing, jobs, tell)
    return {arm.name: [outcomes[_RunKey(arm.name, seed)] for seed in range(seeds)] for arm in arms}


def _train_all(configs: Mapping[_RunKey, Config], jobs: int, tell: Callable[[str], None]) -> dict[_RunKey, Outcome]:
    outcomes: dict[_RunKey, Outcome] = {}
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_train, config): key for key, config in configs.items()}
        while waiting:
            ended, _ = wait(waiting, timeout=TELL_EVERY, return_when=FIRST_COMPLETED)
            for future in ended:
                key = waiting.pop(future)
                outcomes[key] = future.result()
                left = (time.monotonic() - began) / len(outcomes) * (len(configs) - len(outcomes))
                remaining = f"; about {duration(left)} left" if left else ""
                tell(f"{len(outcomes)} of {len(configs)}  {key.arm}, seed {key.seed}{remaining}")
            if not ended:
                tell(_describe_running({key: configs[key] for key in waiting.values()}))
    return outcomes


def _describe_running(configs: Mapping[_RunKey, Config]) -> str:
    """The step of each run that has written metrics and not ended."""
    running = []
    for key, config in configs.items():
        lines = list(read_lines(Path(config.run.output) / config.run.name))
        step = max((line["step"] for line in lines if isinstance(line.get("step"), int)), default=0)
        if step:
            running.append(f"{key.arm}, seed {key.seed}: step {step:,} of {config.run.steps + config.finetune.steps:,}")
    return "training  " + ("; ".join(running) or "the first runs start")


def _train(config: Config) -> Outcome:
    import torch

    from fastmpl.run import trainer

    torch.set_num_threads(1)
    return trainer.train(config, quiet=True, report=False)._asdict()


def _read_finished(config: Config) -> Outcome | None:
    """The results of a run that was finished with exactly these settings."""
    folder = Path(config.run.output) / config.run.name
    if not (folder / "results.json").is_file():
        return None
    from fastmpl.run.expected_inputs import settle_inputs  # imports torch

    if difference(load(folder / "config.toml"), settle_inputs(config, folder)):
        return None
    outcome: Outcome = json.loads((folder / "results.json").read_text())
    return outcome if outcome["steps"] == config.run.steps + config.finetune.steps else None
