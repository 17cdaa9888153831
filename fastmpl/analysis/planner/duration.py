"""How long a run takes: from the arithmetic of a step and a GPU's peak, or from the rate of a run that was measured.

The peaks are NVIDIA's, of dense products with float32 sums, in 10^12 operations a second, of the data sheets of H100 SXM,
H200 SXM, A100, L40S and L4; where a sheet gives the speed with sparsity, half of it. A training step reaches a share of
the peak that depends on the network: state it, or measure a run. Leaves out evaluations and waiting for images.
"""

from pathlib import Path
from typing import Final, NamedTuple

from fastmpl.config import Config, difference, load, uses_tf32
from fastmpl.errors import ConfigError, StorageError
from fastmpl.run.checkpoint import steps
from fastmpl.run.checkpoint_files import read_manifest
from fastmpl.run.resuming import CHECKPOINTS
from fastmpl.telemetry.metrics_file import read_lines

TERA: Final = 1e12
LAUNCHES: Final = 2e-3  # seconds: starting the hundreds of kernels of a step takes more
PACED_BY: Final = 20  # lines of metrics, the newest, that say how fast a run was


class Peak(NamedTuple):
    """Operations a second of a GPU, in 10^12, by the precision of the products."""

    bf16: float
    tf32: float
    float32: float


GPUS: Final[dict[str, Peak]] = {
    "h100": Peak(989, 495, 67),
    "h200": Peak(989, 495, 67),
    "a100": Peak(312, 156, 19.5),
    "l40s": Peak(362, 183, 91.6),
    "l4": Peak(121, 60, 30.3),
}
FREE: Final = ("run", "finetune")  # sections that do not change how long a step takes


class Pace(NamedTuple):
    """Seconds of a step of a rank, and where they come from."""

    seconds: float
    source: str
    sent_by: int = 1  # ranks whose messages are in `seconds`; 1: none are


def pace_at_share(config: Config, flops: int, gpu: str, share: float) -> Pace:
    """The pace of a step of `flops` operations a rank. Raises ConfigError for an unknown GPU or share."""
    if gpu.lower() not in GPUS:
        raise ConfigError(f"fastmpl plan knows no GPU {gpu[:64]!r}; --gpu is one of {', '.join(GPUS)}.")
    if not 0 < share <= 1:
        raise ConfigError(
            f"--share is the share of the GPU's peak that a step reaches, above 0 and up to 1, not {share}."
        )
    kind = "bf16" if config.system.precision == "bf16" else "tf32" if uses_tf32(config) else "float32"
    peak: float = getattr(GPUS[gpu.lower()], kind)
    source = f"{100 * share:.0f} % of the {kind} peak of the {gpu.upper()}, {peak:g} TFLOP/s"
    return Pace(flops / (share * peak * TERA), source)


def pace_of_run(config: Config, run: Path, ranks: int) -> Pace:
    """The pace of each of `ranks` ranks, by the one that the run in the folder `run` had; the batch is shared by them.

    Raises ConfigError where the run wrote none.
    """
    if not (run / "config.toml").is_file():
        raise ConfigError(f"--measured {run} is not the folder of a run: it has no config.toml.")
    other = [key for key in difference(config, load(run / "config.toml")) if key.partition(".")[0] not in FREE]
    lines = [line for line in read_lines(run) if line.get("kind") == "train"][-PACED_BY:]
    timed = [(line["step"], line["seconds"]) for line in lines if isinstance(line.get("seconds"), int | float)]
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        raise ConfigError(
            f"--measured {run} has no two lines of training that tell its speed; train it a little longer."
        )
    (first, began), (last, ended) = timed[0], timed[-1]
    but = f", whose settings differ in {', '.join(other[:5])}" if other else ""
    known = _ranks_of(run)
    were = known or ranks
    on = f" on {were} rank{'s' * (were > 1)}" if known else ", which does not say on how many ranks"
    if were != ranks:
        on += f" and divided among {ranks}"
    return Pace((ended - began) / (last - first) * were / ranks, f"as measured by {run}{on}{but}", were)


def _ranks_of(run: Path) -> int | None:
    """The ranks that wrote the run's newest checkpoint; None where there is none."""
    saved = run / CHECKPOINTS
    try:
        ranks: int = read_manifest(saved / f"step-{max(steps(saved))}")["ranks"]
    except (StorageError, ValueError):  # of no steps
        return None
    return ranks
