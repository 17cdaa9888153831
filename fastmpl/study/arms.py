"""Arms x seeds: the same configuration under different settings, on identical splits and random draws.

Draws are keyed by seed, step and image, so two arms of one seed see the same images, views and initial networks: their
difference is the setting's. Runs are ordinary run folders, one process each; a finished one is not run again.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from fastmpl.config import Config, difference, load

Outcome = dict[str, Any]  # a run's results.json


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


def run_arms(
    arms: Sequence[Arm], seeds: int, folder: Path, tell: Callable[[str], None], jobs: int | None = None
) -> dict[str, list[Outcome]]:
    """The results of every arm for seeds 0, 1, ..., by the arm's name; `jobs` runs at a time, one thread each.

    Raises what a run raised, after the others have ended.
    """
    configs = {(arm.name, seed): arm.config_of(seed, folder) for arm in arms for seed in range(seeds)}
    outcomes = {key: found for key, config in configs.items() if (found := _read_finished(config)) is not None}
    missing = [key for key in configs if key not in outcomes]
    if missing:
        os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
        jobs = min(jobs or os.cpu_count() or 1, len(missing))
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(_train, configs[key]): key for key in missing}
            for done, future in enumerate(as_completed(futures), 1):
                (name, seed), outcomes[futures[future]] = futures[future], future.result()
                tell(f"{done} of {len(missing)}  {name}, seed {seed}")
    return {arm.name: [outcomes[arm.name, seed] for seed in range(seeds)] for arm in arms}


def _train(config: Config) -> Outcome:
    import torch

    from fastmpl.run import trainer

    torch.set_num_threads(1)
    return trainer.train(config, quiet=True, report=False)._asdict()


def _read_finished(config: Config) -> Outcome | None:
    """The results of a run that was finished with exactly these settings."""
    folder = Path(config.run.output) / config.run.name
    if not (folder / "results.json").is_file() or difference(load(folder / "config.toml"), config):
        return None
    outcome: Outcome = json.loads((folder / "results.json").read_text())
    return outcome if outcome["steps"] == config.run.steps + config.finetune.steps else None
