"""Trains arms x seeds: one configuration under different settings, on identical splits and random draws.

Draws are keyed by seed, step and image. Two arms of one seed see the same images, views and initial weights, so their
difference is due to the setting. Each run has an ordinary run folder and a process; a finished one is not run again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fastmpl.config import Config, difference, load
from fastmpl.telemetry.metrics_file import read_lines
from fastmpl.telemetry.progress import duration

Outcome = dict[str, Any]  # a run's results.json
TELL_EVERY = 30.0  # seconds


class Arm(NamedTuple):
    """A configuration file, and what this arm changes in it; `{seed}` in a text stands for the run's seed.

    verb: whether each run is trained, or is a linear probe of its pretrained network.
    """

    name: str
    config: Path
    changes: Mapping[str, Any] = {}
    verb: Literal["train", "probe"] = "train"

    def config_of(self, seed: int, folder: Path) -> Config:
        """The arm's run of one seed, in a folder of its own."""
        run = {"run.seed": seed, "run.name": f"{self.name}-{seed}", "run.output": str(folder)}
        changes = {k: v.replace("{seed}", str(seed)) if isinstance(v, str) else v for k, v in self.changes.items()}
        return load(self.config, {**changes, **run})


class _RunKey(NamedTuple):
    arm: str
    seed: int


class _Run(NamedTuple):
    verb: Literal["train", "probe"]
    config: Config


def run_arms(
    arms: Sequence[Arm], seeds: int, folder: Path, tell: Callable[[str], None], jobs: int | None = None
) -> dict[str, list[Outcome]]:
    """Trains every arm with seeds 0, 1, ...; returns the results by the arm's name.

    `jobs` runs train at a time, each with one thread. `tell` gets a line at the start, after each run, and every half
    minute in which none ends. Raises what a run raised, after the others have ended.
    """
    runs = {
        _RunKey(arm.name, seed): _Run(arm.verb, arm.config_of(seed, folder)) for arm in arms for seed in range(seeds)
    }
    outcomes = {key: found for key, run in runs.items() if (found := _read_finished(run)) is not None}
    missing = {key: run for key, run in runs.items() if key not in outcomes}
    if missing:
        os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
        jobs = min(jobs or os.cpu_count() or 1, len(missing))
        finished = f" ({len(outcomes)} are finished already)" if outcomes else ""
        tell(f"{len(arms)} arms x {seeds} seeds: {len(missing)} runs to train{finished}, {jobs} at a time, in {folder}")
        outcomes |= _train_all(missing, jobs, tell)
    return {arm.name: [outcomes[_RunKey(arm.name, seed)] for seed in range(seeds)] for arm in arms}


def _train_all(runs: Mapping[_RunKey, _Run], jobs: int, tell: Callable[[str], None]) -> dict[_RunKey, Outcome]:
    outcomes: dict[_RunKey, Outcome] = {}
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_execute, run): key for key, run in runs.items()}
        while waiting:
            ended, _ = wait(waiting, timeout=TELL_EVERY, return_when=FIRST_COMPLETED)
            for future in ended:
                key = waiting.pop(future)
                outcomes[key] = future.result()
                left = (time.monotonic() - began) / len(outcomes) * (len(runs) - len(outcomes))
                remaining = f"; about {duration(left)} left" if left else ""
                tell(f"{len(outcomes)} of {len(runs)}  {key.arm}, seed {key.seed}{remaining}")
            if not ended:
                tell(_describe_running({key: runs[key].config for key in waiting.values()}))
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


def _execute(run: _Run) -> Outcome:
    import torch

    torch.set_num_threads(1)
    if run.verb == "probe":
        from fastmpl.run.probe import probe

        return probe(run.config, features=_features_folder(run.config)).results._asdict()
    from fastmpl.run import trainer

    return trainer.train(run.config, quiet=True, report=False)._asdict()


def _features_folder(config: Config) -> Path:
    """Where the seeds of a probe share the features of one network."""
    network = f"{config.student.model} {config.student.pretrained}"
    return Path(config.run.output) / f"features-{hashlib.sha256(network.encode()).hexdigest()[:8]}"


def _read_finished(run: _Run) -> Outcome | None:
    """The results of a run that was finished with exactly these settings."""
    config = run.config
    folder = Path(config.run.output) / config.run.name
    if not (folder / "results.json").is_file():
        return None
    from fastmpl.run.expected_inputs import settle_inputs  # imports torch

    if difference(load(folder / "config.toml"), settle_inputs(config, folder)):
        return None
    outcome: Outcome = json.loads((folder / "results.json").read_text())
    # the steps of a probe are not the configuration's
    return outcome if run.verb == "probe" or outcome["steps"] == config.run.steps + config.finetune.steps else None
