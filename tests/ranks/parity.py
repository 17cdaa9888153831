"""Small training runs that one process and several ranks take on the same global batches."""

import gc
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.bench_zero import KINDS, Pair
from benchmarks.bench_zero import count_traffic as count_step
from benchmarks.steps import Size
from fastmpl.config import SystemConfig
from fastmpl.data.batch import Batch
from fastmpl.distributed.ranks import Ranks
from fastmpl.learners.plain import PlainLearner
from fastmpl.learners.zero.learner import ZeroLearner
from fastmpl.methods.feedback import Kind
from fastmpl.methods.mpl import Feedback, MetaPseudoLabels
from fastmpl.methods.uda import Consistency
from fastmpl.models import build
from fastmpl.models.norms import Norm
from fastmpl.models.reduced_teacher import ReducedTeacher
from fastmpl.step.context import make_context
from fastmpl.step.mpl_step import MplStep
from fastmpl.step.order import split
from fastmpl.step.uncredited_step import leave_out_credit
from tests.step.worlds import optimiser

CLASSES, SHAPE = 3, (3, 4, 4)
LABELLED, UNLABELLED = 16, 16  # of all ranks
STEPS = 20


@dataclass(frozen=True)
class Case:
    """A network, a feedback and a precision."""

    model: str = "perceptron"
    norm: Norm = "batch"
    kind: Kind = "exact"
    dtype: torch.dtype = torch.float64
    feedback: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    parts: int = 1  # micro-batches of a rank
    tangent: Literal["jvp", "difference"] = "jvp"
    depth: int = 0  # last blocks that the tangent moves
    at_once: int = 0  # most images of a part of the tangent
    reduced: bool = False  # a reduced teacher over stored distributions
    stage: int | None = None  # of ZeRO
    recompute: bool = False
    offload: bool = False


CASES = {
    "perceptron exact": Case(),
    "perceptron scalar": Case(kind="scalar", feedback={"baseline": 0.9}),
    "perceptron per-example": Case(kind="per_example", student={"name": "adamw", "lr": 0.01}),
    "perceptron clipped": Case(student={"clip": 0.3}),
    "perceptron shuffled": Case(feedback={"control": "shuffled"}),
    "perceptron scalar shuffled": Case(kind="scalar", feedback={"control": "shuffled"}),
    "accumulated exact": Case(parts=4),
    "accumulated scalar": Case(kind="scalar", parts=4),
    "accumulated shuffled": Case(feedback={"control": "shuffled"}, parts=2),
    "accumulated every third": Case(feedback={"every": 3}, parts=2),
    "perceptron trusted": Case(feedback={"images": "trusted"}),
    "perceptron difference": Case(tangent="difference"),
    "accumulated difference": Case(tangent="difference", parts=4),
    "reduced exact": Case(reduced=True),
    "reduced scalar": Case(kind="scalar", reduced=True),
    "reduced difference": Case(tangent="difference", reduced=True),
    "accumulated reduced exact": Case(reduced=True, parts=4),
    "accumulated reduced scalar": Case(kind="scalar", reduced=True, parts=4),
    "accumulated reduced difference": Case(tangent="difference", reduced=True, parts=4),
    "conv sync exact": Case("conv", "sync"),
    "conv sync scalar": Case("conv", "sync", "scalar"),
    "conv group exact": Case("conv", "group"),
    "conv local exact": Case("conv", "batch"),
    "float32 exact": Case(dtype=torch.float32),
    "float32 scalar": Case(kind="scalar", dtype=torch.float32),
}

# On four ranks: both credits, both teachers, micro-batches, synchronised norm, both precisions.
SOME = (
    "perceptron exact",
    "perceptron scalar",
    "accumulated exact",
    "accumulated scalar",
    "accumulated shuffled",
    "perceptron difference",
    "accumulated difference",
    "reduced exact",
    "reduced scalar",
    "reduced difference",
    "accumulated reduced exact",
    "accumulated reduced scalar",
    "accumulated reduced difference",
    "conv sync exact",
    "conv sync scalar",
    "float32 exact",
    "float32 scalar",
)


# With DeepSpeed: what R5 asks of every stage, and what else a method may ask of one.
R5 = {
    f"{parts}{teacher}{tangent}": Case(
        kind="scalar" if tangent == "scalar" else "exact",
        feedback={"baseline": 0.9} if tangent == "scalar" else {},
        tangent="difference" if tangent == "difference" else "jvp",
        reduced=bool(teacher),
        parts=4 if parts else 1,
    )
    for tangent in ("scalar", "jvp", "difference")
    for teacher in ("", "reduced ")
    for parts in ("", "accumulated ")
}
FURTHER = {
    "per-example adamw": Case(kind="per_example", student={"name": "adamw", "lr": 0.01}),
    "clipped": Case(student={"clip": 0.3}),
    "clipped adamw": Case(student={"name": "adamw", "lr": 0.01, "clip": 0.3}),
    "fused with average": Case(student={"name": "fastmpl:sgd_ema"}),
    "shuffled": Case(feedback={"control": "shuffled"}),
    "last block": Case(depth=1),
    "tangent in parts": Case(at_once=3),
    "last block difference": Case(depth=1, tangent="difference"),
    "trusted": Case(feedback={"images": "trusted"}),
    "every third": Case(feedback={"every": 3}, student={"clip": 0.3}, parts=4),
    "every third scalar": Case(kind="scalar", feedback={"every": 3, "baseline": 0.9}),
    "conv sync": Case("conv", "sync"),
    "conv group": Case("conv", "group"),
    "recomputed": Case("conv", "sync", recompute=True),
    "rates by layer": Case(student={"name": "adamw", "lr": 0.01, "clip": 0.3, "layer_decay": 0.5, "head_lr": 2.0}),
}
# Stage 3 refuses frozen layers.
FROZEN = {
    "frozen": Case(student={"freeze": 1, "layer_decay": 0.5, "clip": 0.3}),
    "frozen difference": Case(student={"freeze": 1}, tangent="difference"),
    "frozen with its norm": Case("conv", "sync", student={"freeze": 1, "head_lr": 2.0}),
    "frozen at first": Case(student={"freeze": 1, "freeze_steps": 5}),
}
OFFLOADED = {
    "offloaded jvp": Case(offload=True, parts=4),
    "offloaded difference": Case(offload=True, tangent="difference"),
    "offloaded adamw": Case(offload=True, kind="per_example", student={"name": "adamw", "lr": 0.01, "clip": 0.3}),
}
SHARDED = R5 | FURTHER | OFFLOADED | FROZEN
STAGES = (0, 1, 2, 3)


def sharded(name: str, stage: int | None) -> Case:
    """A case of `SHARDED` in float32, with DeepSpeed; None: without."""
    return replace(SHARDED[name], dtype=torch.float32, stage=stage)


@dataclass(frozen=True)
class Every:
    """A job of each rank: these cases in these stages, one after another, so that DeepSpeed is imported once."""

    names: tuple[str, ...]
    stages: tuple[int, ...] = STAGES

    def __call__(self, ranks: Ranks) -> dict[str, dict[str, Any]]:
        gc.freeze()  # DeepSpeed collects all garbage for each engine: not what the tests' imports have left
        found = {}
        for name in self.names:
            for stage in self.stages:
                found[f"{name} {stage}"] = train_case(sharded(name, stage), ranks)
        return found


def train_case(case: Case, ranks: Ranks, steps: int = STEPS) -> dict[str, Any]:
    """Both networks, the average and the feedback of each step that credits, after `steps` steps."""
    drawn = {"exact": "soft"}.get(case.kind, "sampled")
    method = MetaPseudoLabels(
        unlabelled=UNLABELLED,
        targets=drawn,  # type: ignore[arg-type]
        temperature=0.8,
        label_smoothing=0.1,
        feedback=Feedback(kind=case.kind, **case.feedback),
        consistency=None if case.reduced else Consistency(),
    )
    student = _learner(case, network(case, 1), ranks, average=0.9, settings=case.student)
    teacher_network = ReducedTeacher(CLASSES, 8, 3, 2).to(case.dtype) if case.reduced else network(case, 2)
    teacher = _learner(case, teacher_network, ranks, average=0.0, settings={})
    baseline = torch.zeros((), dtype=case.dtype)
    take, every = MplStep(method, split(method), teacher, student), method.feedback.every
    between, fed = leave_out_credit(take, torch.device("cpu")), []
    for step in range(steps):
        weight = torch.tensor(0.7, dtype=case.dtype)
        context = make_context(torch.tensor(1234), torch.tensor(step), weight, rank=ranks.rank, parts=case.parts)
        parts = part(batch_of(step, case.dtype, stored=case.reduced), ranks).parts(case.parts)
        if (step + 1) % every:
            between(parts, context, baseline)
        else:
            fed.append(take(parts, context, baseline).feedback)
    tensors = {f"student/{name}": value for name, value in gather_wholes(student).items()}
    tensors |= {f"teacher/{name}": value for name, value in gather_wholes(teacher).items()}
    student.close()
    teacher.close()
    return {"tensors": tensors, "feedback": torch.stack(fed), "baseline": baseline}


@dataclass(frozen=True)
class Poisoned:
    """A job of each rank: one step in which the gradient of one rank is not a number; what moved, by stage."""

    def __call__(self, ranks: Ranks) -> dict[str, dict[str, Any]]:
        found = {}
        for stage in STAGES:
            case = Case("conv", "sync", dtype=torch.float32, stage=stage)
            learner = _learner(case, network(case, 1), ranks, average=0.9, settings={})
            for step, spoil in enumerate((1.0, float("nan") if ranks.rank == 1 else 1.0)):
                before = {name: value.clone() for name, value in learner.state().items()}
                images = part(batch_of(step, case.dtype), ranks).strong
                learner.accumulate(learner.forward(images, torch.tensor(0)).square().mean() * spoil)
                update = learner.apply(torch.tensor(step))
            moved = [name for name, value in learner.state().items() if not torch.equal(value, before[name])]
            found[str(stage)] = {"applied": update.applied, "moved": moved, "norm": update.norm}
            learner.close()
        return found


def count_traffic(ranks: Ranks) -> dict[str, int]:
    """Messages of a few numbers in one step, by stage and feedback."""
    size = Size("perceptron", 4, LABELLED, UNLABELLED)
    found = {}
    for stage in (None, *STAGES):
        for kind in KINDS:
            pair = Pair(size, stage, kind, ranks)
            pair()  # the first step may prepare
            found[f"{'copies' if stage is None else stage} {kind}"] = count_step(pair).scalars
            pair.close()
    return found


def gather_wholes(learner: PlainLearner | ZeroLearner) -> dict[str, Tensor]:
    """The learner's state; of a sharded one its networks, made whole."""
    plain = isinstance(learner, PlainLearner)
    found = learner.state() if plain else {f"module/{name}": value.clone() for name, value in learner.weights()}
    if learner.has_average:
        with learner.use_average():
            found |= {f"average/{name}": value.clone() for name, value in learner.weights()}
    return found


def every_case(ranks: Ranks) -> dict[str, dict[str, Any]]:
    return {name: train_case(case, ranks) for name, case in CASES.items()}


def some_cases(ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Those that differ between two ranks and four; the machines that run the tests may have two cores."""
    return {name: train_case(CASES[name], ranks) for name in SOME}


def batch_of(step: int, dtype: torch.dtype, *, stored: bool = False) -> Batch:
    """The global batch of a step, with what a large teacher said of its images where it is `stored`."""
    g = torch.Generator().manual_seed(10 + step)

    def images(n: int) -> Tensor:
        return torch.randn(n, *SHAPE, generator=g, dtype=torch.float64).to(dtype)

    def classes(n: int) -> Tensor:
        return torch.randint(CLASSES, (n,), generator=g)

    def distributions(n: int) -> Tensor | None:
        return (
            torch.softmax(2 * torch.randn(n, CLASSES, generator=g, dtype=torch.float64), -1).to(dtype)
            if stored
            else None
        )

    return Batch(
        labelled=images(LABELLED),
        targets=classes(LABELLED),
        labelled_index=torch.arange(LABELLED),
        weak=images(UNLABELLED),
        strong=images(UNLABELLED),
        unlabelled_index=torch.arange(100, 100 + UNLABELLED),
        trusted=images(LABELLED),
        trusted_targets=classes(LABELLED),
        stored_labelled=distributions(LABELLED),
        stored_unlabelled=distributions(UNLABELLED),
    )


def part(batch: Batch, ranks: Ranks) -> Batch:
    """This rank's rows."""
    return batch.map(lambda rows: rows.chunk(ranks.size)[ranks.rank])


def network(case: Case, seed: int) -> nn.Module:
    return build(
        case.model, classes=CLASSES, image_shape=SHAPE, dropout=0.0, norm=case.norm, width=8, depth=3, seed=seed
    ).to(case.dtype)


def _learner(
    case: Case, module: nn.Module, ranks: Ranks, *, average: float, settings: dict[str, Any]
) -> PlainLearner | ZeroLearner:
    common: dict[str, Any] = dict(steps=1000, average=average, tangent=case.tangent, depth=case.depth, ranks=ranks)
    common["tangent_images"] = case.at_once
    if case.stage is None:
        return PlainLearner(module, optimiser(**settings), **common)
    system = SystemConfig(engine="zero", zero_stage=case.stage, recompute=case.recompute, offload=case.offload)
    return ZeroLearner(module, optimiser(**settings), system, **common)
