"""From the published order of the step to this project's default, one change a row: `python -m benchmarks.bench_ladder`.

Of each row: CPU seconds of a step (one thread, rows take turns), its peak of bytes, operators and arithmetic, on a Wide
ResNet-28-2 with 4 + 28 images of 32 px; and whether what is learned stays the same. That is asked in two ways. By how
much a step moves both networks otherwise than the row before moves them (relative length of the difference), on a
perceptron and on a Wide ResNet-10-2: a change of the order of passes changes which images share batch statistics, so a
network with batch norm moves otherwise there, and one without does not. And by the accuracy on the test images of digits
after a short training, over seeds. About four minutes.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from benchmarks.bench_step import run_on, unfuse
from benchmarks.environment import ROOT, keep_memory
from benchmarks.harness import compare
from benchmarks.records import Record, Row, save
from benchmarks.steps import CPU, Size, Step
from fastmpl.analysis.accounting import count_arithmetic
from fastmpl.config import load
from fastmpl.data.batch import Batch
from fastmpl.data.build import build
from fastmpl.learners.arithmetic import computes_bf16
from fastmpl.step.eager import EagerStep, Ramp
from fastmpl.step.taped_step import TapedStep

PERCEPTRON: Final = Size("perceptron", 8, 8, 56)
TIMED: Final = Size("wrn_28_2", 32, 4, 28)
WIDE: Final = Size("wrn_10_2", 16, 8, 56)
DIGITS: Final = Size("conv", 8, 16, 64)
WARMUP: Final = 13  # calls after which a tape serves


class Rung(NamedTuple):
    """One row: the step that it takes. `options` are `Step`'s."""

    name: str
    options: dict[str, Any]
    plain: bool = False  # with torch's operations alone
    on_tape: bool = False
    learns: str = "the same"  # what a step learns, against the row before


def climb() -> list[Rung]:
    """The rows, each with what the row before has."""
    torch_alone: dict[str, Any] = {"prepare": unfuse}
    last = {"channels_last": True}
    exact = {**last, "kind": "exact"}
    rungs = [
        Rung("published order", {"schedule": "published", **torch_alone}, True),
        Rung("validation losses of labelled images alone", {"schedule": "joint", **torch_alone}, True),
        Rung("no graph where no gradient is needed", torch_alone, True),
        Rung("channels last", {**torch_alone, **last}, True),
        Rung("fused losses and optimiser", {**torch_alone, **last}),
        Rung("fused norms, activations and sums", last),
        Rung("exact feedback of soft labels", {**exact, "keeps_inputs": False}, learns="another feedback"),
        Rung("tangent from the inputs of the norms", exact),
        Rung("a tape of the operators: the default", exact, on_tape=True),
    ]
    deferred = {**exact, "deferred": True}
    again = {**deferred, "recompute": True, "keeps_inputs": False}
    rungs.append(Rung("for less memory: deferred teacher", deferred, on_tape=True))
    rungs.append(Rung("for less memory: blocks computed again", again, on_tape=True))
    if computes_bf16(CPU):
        rungs.append(Rung("the default in bf16", {**exact, "precision": "bf16"}, on_tape=True, learns="rounded"))
    return rungs


def build_step(rung: Rung, size: Size) -> tuple[Step, Callable[[], object]]:
    """A step from the same weights on the same batch for every row, and what takes it."""
    torch.manual_seed(0)
    step = Step(size, **rung.options)
    take: Callable[[], object] = step
    if step.schedule != "published":
        eager = EagerStep(step.make_mpl_step(), seed=0, ramp=Ramp(1.0), device=CPU)
        eager.seed.zero_()  # the keys of the published step
        execute = TapedStep(eager, give_up=refuse) if rung.on_tape else eager

        def take() -> object:
            return execute(step.batch)

    return step, run_on("reference" if rung.plain else "auto", take)


def refuse(reason: str) -> None:
    raise RuntimeError(f"The step has no tape: {reason}.")


def weights(step: Step) -> Tensor:
    """The parameters of both networks, as one vector."""
    every = (p for learner in (step.student, step.teacher) for p in learner.parameters.values())
    return torch.cat([p.detach().flatten() for p in every])


def movement(rung: Rung, size: Size, calls: int) -> Tensor:
    """By how much `calls` steps move both networks."""
    step, call = build_step(rung, size)
    before = weights(step)
    for _ in range(calls):
        call()
    return weights(step) - before


def difference(before: Rung, after: Rung, size: Size) -> float:
    """How much otherwise `after` moves the networks: length of the difference over that of the movement."""
    calls = WARMUP if after.on_tape else 1
    first, second = (movement(rung, size, calls) for rung in (before, after))
    return float((second - first).norm() / first.norm())


class Training(NamedTuple):
    """What a short training on digits sees, drawn once for all rows."""

    batches: list[Batch]
    images: Tensor  # of the test
    labels: Tensor


def draw_training(seed: int, steps: int) -> Training:
    """The batches of `steps` steps from 20 labels, and the test images."""
    changes = {"data.batch_labelled": DIGITS.labelled, "data.batch_unlabelled": DIGITS.unlabelled, "run.seed": seed}
    data = build(load(ROOT / "launch/configs/digits.toml", changes).data, seed=seed, threads=1)
    assert data.test is not None
    batches = [next(data.train).map(torch.clone) for _ in range(steps)]
    return Training(batches, data.test.images, data.test.labels)


def accuracy(rung: Rung, training: Training) -> float:
    """Percent of the test images that the student has right after the training."""
    step, call = build_step(rung, DIGITS)
    for batch in training.batches:
        step.take_batch(batch)
        call()
    logits = step.student.infer(training.images)
    return 100 * float((logits.argmax(1) == training.labels).float().mean())


def measure(rungs: Sequence[Rung], size: Size, *, rounds: int, seeds: int, steps: int) -> list[Row]:
    """A row for each rung."""
    apart = {
        after.name: {of.model: difference(before, after, of) for of in (PERCEPTRON, WIDE)}
        for before, after in pairwise(rungs)
        if after.learns == "the same"
    }
    print("differences", apart, flush=True)
    made = {rung.name: build_step(rung, size) for rung in rungs}
    for rung in rungs:
        for _ in range(WARMUP if rung.on_tape else 1):
            made[rung.name][1]()
    record = compare(
        {name: call for name, (_, call) in made.items()},
        rounds=rounds,
        warmup=1,
        baseline=rungs[0].name,
        watch={name: tuple(step.held) for name, (step, _) in made.items()},
    )
    trainings = [draw_training(seed, steps) for seed in range(seeds)]
    rows: list[Row] = []
    for rung, timed in zip(rungs, record.rows, strict=True):
        found = torch.tensor([accuracy(rung, training) for training in trainings])
        error = float(found.std() / len(found) ** 0.5) if seeds > 1 else 0.0
        rows.append(
            {
                "change": rung.name,
                "ms a step": f"{1e3 * float(str(timed['cpu_median'])):.0f}",
                "speed": f"{timed['speedup_median']:.2f}x",
                "peak MiB": f"{int(str(timed['peak_bytes'])) / 2**20:.0f}",
                "operators": timed["operations"],
                "GFLOP": f"{count_arithmetic(made[rung.name][1]) / 1e9:.0f}",
                "perceptron moves otherwise by": _say(rung, apart, PERCEPTRON),
                "Wide ResNet by": _say(rung, apart, WIDE),
                "digits, %": f"{float(found.mean()):.1f} ± {error:.1f}",
            }
        )
    return rows


def _say(rung: Rung, apart: dict[str, dict[str, float]], size: Size) -> str:
    if rung.name not in apart:
        return "" if rung.learns == "the same" else rung.learns
    found = apart[rung.name][size.model]
    return f"{found:.0e}" if found else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300, help="of the training on digits")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(climb(), TIMED, rounds=asked.rounds, seeds=asked.seeds, steps=asked.steps)
    for row in rows:
        print("  ".join(str(value) for value in row.values()))
    facts = {"network": TIMED.model, "B": TIMED.labelled, "U": TIMED.unlabelled, "pixels": TIMED.pixels, **vars(asked)}
    print(save(Record("ladder", "table", rows, facts)))


if __name__ == "__main__":
    keep_memory("benchmarks.bench_ladder")
    main()
