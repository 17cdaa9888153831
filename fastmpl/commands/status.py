"""How a run is doing, read from its folder alone: whether it is still at it, how far, how well."""

import fcntl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmpl.config import load
from fastmpl.config.paths import suggest_run
from fastmpl.errors import ConfigError, StorageError
from fastmpl.run.checkpoint_files import NAME, read_manifest
from fastmpl.telemetry.metrics_file import read_lines
from fastmpl.telemetry.progress import duration
from fastmpl.untrusted import printable, read_json_object

PACED_BY = 20  # lines of metrics, the newest, that say how fast a run is
CONTINUE = "The same command continues it."


def _is_held(folder: Path) -> bool:
    """Whether a process holds the run's folder; one that was killed holds nothing."""
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file: never held
        return False
    return False


def _read_status(folder: Path) -> dict[str, Any]:
    try:
        return read_json_object(folder / "STATUS.json")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is not the folder of a run: it has no readable STATUS.json.{suggest_run(folder)}"
        ) from error


def _describe_state(folder: Path, status: dict[str, Any], total: int, saved: int) -> str:
    """saved: the step of the newest checkpoint. STATUS.json is written after it, and a kill may come between the two."""
    state, step = status.get("state"), status.get("step")
    who = f"process {status.get('process')} on {status.get('host')}"
    if state == "running":
        if _is_held(folder):
            return f"running, saved at step {saved} of {total} ({who})"
        return f"lost, saved at step {saved} of {total}: {who} has gone. {CONTINUE}"
    message = str(status.get("message", "")) if state != "done" else ""  # the line of the student says it
    return f"{state} at step {step} of {total}" + (f": {message}" if message else "")


def _format_age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago" if seconds >= 0 else "in the future, by this machine's clock"


def _newest_checkpoint(folder: Path) -> tuple[int, float]:
    """The step of the newest complete checkpoint, and the time at which it was written; 0 and 0 if there is none."""
    for path in sorted(folder.glob("checkpoints/step-*"), key=lambda path: (len(path.name), path.name), reverse=True):
        try:
            if NAME.fullmatch(path.name):
                return int(read_manifest(path)["step"]), path.stat().st_mtime
        except (StorageError, OSError):
            continue
    return 0, 0.0


def _has(line: Mapping[str, Any], *names: str) -> bool:
    """Whether a line of metrics has these numbers; a damaged file may hold anything."""
    return all(isinstance(line.get(name), int | float) for name in names)


def _describe_training(trained: Sequence[Mapping[str, Any]], total: int, *, runs: bool) -> str:
    """The newest line of training. runs: whether there is time left, which is told at the pace of the last lines."""
    last = trained[-1]
    said = f"training    step {last['step']} of {total}, {last['images_per_second']:.0f} images/s"
    timed = [line for line in trained[-PACED_BY:] if _has(line, "seconds")]
    if not runs or len(timed) < 2:
        return said
    steps, seconds = (timed[-1][name] - timed[0][name] for name in ("step", "seconds"))
    if steps <= 0 or seconds <= 0:  # of a damaged file
        return said
    return f"{said}, {duration((total - last['step']) * seconds / steps)} left"


def _format_shares(shares: Mapping[str, float]) -> str:
    """Accuracies in [0, 1] by split, as percent."""
    return ", ".join(f"{100 * share:.1f} % of the {split} images" for split, share in shares.items())


def _describe_headline(folder: Path) -> Iterator[str]:
    """The network that the run left, and its accuracies; nothing if it has not ended."""
    try:
        found = read_json_object(folder / "results.json")["headline"]
        shares = _format_shares({split: found[split] for split in ("test", "validation") if split in found})
        yield f"student     {found['description']}"
    except (OSError, ValueError, TypeError, KeyError):
        return
    if shares:
        yield f"accuracy    student.safetensors: {shares}"


def status(folder: Path) -> Iterator[str]:
    """Some lines on the run in `folder`. Raises ConfigError where there is none."""
    found = _read_status(folder)
    config = load(folder / "config.toml")
    total = config.run.steps + config.finetune.steps
    yield f"run         {folder}: {config.method.name} on {config.data.source}"
    saved, when = _newest_checkpoint(folder)
    yield f"state       {_describe_state(folder, found, total, saved)}"
    notes = found.get("notes")
    for note in notes if isinstance(notes, list) else []:
        yield f"note        {note}"
    yield "checkpoint  " + (f"step-{saved}, {_format_age(time.time() - when)}" if when else "none")
    lines = list(read_lines(folder))
    trained = [line for line in lines if line.get("kind") == "train" and _has(line, "step", "images_per_second")]
    if trained:
        yield _describe_training(trained, total, runs=found.get("state") == "running" and _is_held(folder))
    yield from _describe_headline(folder)
    accuracies: dict[str, dict[str, float]] = {}
    for line in lines:
        if line.get("kind") == "evaluation" and _has(line, "accuracy"):
            accuracies.setdefault(str(line.get("network")), {})[str(line.get("split"))] = line["accuracy"]
    for network, shares in accuracies.items():
        yield f"accuracy    {printable(network)}: {_format_shares(shares)}"
