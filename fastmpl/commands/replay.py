"""What `fastmpl replay` says of a step that was taken again."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fastmpl.run.replay import Replayed, replay

SHOWN: Final = 8  # names of images in a line


def describe_step(path: Path) -> Iterator[str]:
    """Takes the step after the checkpoint at `path` again; lines on it. Raises ConfigError if it is no checkpoint."""
    found = replay(path)
    yield f"step        {found.step}, taken again from {path}"
    yield from _describe_metrics(found)
    for name, value in found.largest.items():
        yield f"{name:11} its largest parameter was {value:.3g} before the step"
    for part, names in found.images.items():
        if names:
            more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            yield f"{part:11} {', '.join(names[:SHOWN])}{more}"


def _describe_metrics(found: Replayed) -> Iterator[str]:
    broken = [name for name, value in found.metrics.items() if not math.isfinite(value)]
    skipped = int(found.metrics["skipped"])
    verdict = f"{skipped} updates were skipped" if skipped else "every update was finite"
    yield f"updates     {verdict}" + (f"; not finite: {', '.join(broken)}" if broken else "")
    if found.every:
        yield f"feedback    this step credits no labels: one in {found.every} does (feedback.every)"
    for name, value in found.metrics.items():
        if value and name != "skipped":
            yield f"            {name} {value:.6g}"
