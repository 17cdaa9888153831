"""The time of a whole step of Meta Pseudo Labels by schedule, credit and kernels: `python -m benchmarks.bench_step`.

WRN-28-2 at 32 px, one thread, variants interleaved. `schedules`: B = 8, U = 56, float32, against the published order;
`credit`: exact against scalar feedback; `kernels`: B = 16, U = 112, bf16, channels-last, with the fused operations on
and off. Memory that is freed is kept by the process (benchmarks.environment.HEAP), as a training loop's caches would.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks.environment import keep_memory
from benchmarks.harness import compare
from benchmarks.records import Record, save
from benchmarks.steps import CPU, WRN, Size, Step
from fastmpl.learners.arithmetic import computes_bf16
from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d

LARGE = Size("wrn_28_2", 32, 16, 112)


class NormThenAct(nn.Module):
    """What a network without the fused operation has: torch's batch norm, then torch's activation."""

    def __init__(self, fused: BatchNormAct2d) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(fused.num_features, fused.eps, fused.momentum)
        self.act = nn.LeakyReLU(fused.slope)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.act(self.norm(x))
        return result


def unfuse(network: nn.Module) -> None:
    """Puts torch's two modules in the place of every fused one."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNormAct2d):
                setattr(parent, name, NormThenAct(child))


def run_on(backend: dispatch.Choice, step: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        with dispatch.use(backend):
            return step()

    return call


def record(
    name: str, steps: dict[str, Step], baseline: str, rounds: int, plain: frozenset[str] = frozenset()
) -> Record:
    """`plain`: the variants that run torch's operations alone."""
    variants = {key: run_on("reference" if key in plain else "auto", step) for key, step in steps.items()}
    size = next(iter(steps.values())).size
    config: dict[str, str | int | float | bool | None] = {
        "B": size.labelled,
        "U": size.unlabelled,
        "pixels": size.pixels,
    }
    watch = {key: tuple(step.held) for key, step in steps.items()}
    return compare(variants, rounds=rounds, warmup=2, baseline=baseline, name=name, config=config, watch=watch)


def schedules(rounds: int) -> Record:
    step = partial(Step, WRN, channels_last=True)
    return record(
        "step_schedules",
        {
            "published order": step(schedule="published"),
            "split": step(),
            "split, deferred": step(deferred=True),
            "split, deferred, recomputed": step(deferred=True, recompute=True),
            "supervised, one network": step(schedule="supervised"),
        },
        "published order",
        rounds,
    )


def credit(rounds: int) -> Record:
    step = partial(Step, WRN, channels_last=True)
    return record(
        "step_credit",
        {
            "scalar": step(),
            "exact, jvp": step(kind="exact"),
            "exact, difference": step(kind="exact", tangent="difference"),
            "off": step(kind="off"),
        },
        "scalar",
        rounds,
    )


def kernels(rounds: int) -> Record:
    step = partial(Step, LARGE, precision="bf16", channels_last=True)
    off = "torch's operations"
    return record(
        "step_kernels", {off: step(prepare=unfuse), "fused operations": step()}, off, rounds, frozenset({off})
    )


def main() -> None:
    questions = {"schedules": schedules, "credit": credit, "kernels": kernels}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", nargs="*", default=list(questions))
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    keep_memory("benchmarks.bench_step")
    torch.set_num_threads(1)
    for name in asked.questions:
        if name == "kernels" and not computes_bf16(CPU):
            print("kernels: left out; they are timed in bf16, which this CPU emulates")
            continue
        found = questions[name](asked.rounds)
        for row in found.rows:
            print(name, row["variant"], row["cpu_median"], row["speedup_median"], row["peak_bytes"], row["operations"])
        print(save(found))


if __name__ == "__main__":
    main()
