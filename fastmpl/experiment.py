"""Arms x seeds: the same configuration under different settings, on identical splits and random draws.

Draws are keyed by seed, step and image, so two arms of one seed see the same images, views and initial networks: their
difference is the setting's. Runs are ordinary run folders, one process each; a finished one is not run again.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from fastmpl.config import Config, difference, load

Outcome = dict[str, Any]  # a run's results.json


class Arm(NamedTuple):
    """A configuration file, and what this arm changes in it."""

    name: str
    config: Path
    changes: Mapping[str, Any] = {}

    def of(self, seed: int, folder: Path) -> Config:
        """The arm's run of one seed, in a folder of its own."""
        run = {"run.seed": seed, "run.name": f"{self.name}-{seed}", "run.output": str(folder)}
        return load(self.config, {**self.changes, **run})


def run_arms(
    arms: Sequence[Arm], seeds: int, folder: Path, tell: Callable[[str], None], jobs: int | None = None
) -> dict[str, list[Outcome]]:
    """The results of every arm for seeds 0, 1, ..., by the arm's name; `jobs` runs at a time, one thread each.

    Raises what a run raised, after the others have ended.
    """
    configs = {(arm.name, seed): arm.of(seed, folder) for arm in arms for seed in range(seeds)}
    outcomes = {key: found for key, config in configs.items() if (found := _finished(config)) is not None}
    missing = [key for key in configs if key not in outcomes]
    if missing:
        os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they import torch
        jobs = min(jobs or os.cpu_count() or 1, len(missing))
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(_run, configs[key]): key for key in missing}
            for done, future in enumerate(as_completed(futures), 1):
                (name, seed), outcomes[futures[future]] = futures[future], future.result()
                tell(f"{done} of {len(missing)}  {name}, seed {seed}")
    return {arm.name: [outcomes[arm.name, seed] for seed in range(seeds)] for arm in arms}


def _run(config: Config) -> Outcome:
    import torch

    from fastmpl import trainer

    torch.set_num_threads(1)
    return trainer.train(config, quiet=True)._asdict()


def _finished(config: Config) -> Outcome | None:
    """The results of a run that was finished with exactly these settings."""
    folder = Path(config.run.output) / config.run.name
    if not (folder / "results.json").is_file() or difference(load(folder / "config.toml"), config):
        return None
    outcome: Outcome = json.loads((folder / "results.json").read_text())
    return outcome if outcome["steps"] == config.run.steps + config.finetune.steps else None


class Summary(NamedTuple):
    """A mean and its standard error; `error` is nan for one value."""

    mean: float
    error: float


def summary(values: Sequence[float]) -> Summary:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Summary(mean, math.nan)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Summary(mean, math.sqrt(variance / len(values)))


class Paired(NamedTuple):
    """Mean difference of pairs, its 95 % t interval, and the two-sided p of no difference."""

    mean: float
    low: float
    high: float
    p: float


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Of a minus b, by seed: the interval and test for n - 1 degrees of freedom (Student 1908)."""
    from scipy import stats  # a second to import

    assert len(a) == len(b)
    mean, error = summary([x - y for x, y in zip(a, b, strict=True)])
    if len(a) < 2:
        return Paired(mean, math.nan, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, len(a) - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, len(a) - 1)) if error > 0 else float(mean == 0)
    return Paired(mean, mean - half, mean + half, p)


def seeds_of(accuracies: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, Sequence[float], Summary]]:
    """Each arm with its accuracies and their summary."""
    for name, values in accuracies.items():
        yield name, values, summary(values)
