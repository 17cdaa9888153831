"""A whole step, eager and as one CUDA graph, by schedule and feedback, beside the order that was published.

WRN-28-2 at 32 px and ResNet-50 at 224 px, bf16, channels last; small networks in float32 where a CPU stands in. Variants
of a row are timed in turn, and a speed is the published order's time over the variant's. The published order is
`benchmarks.steps.take_published_step`, eager and compiled.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Final, Literal, NamedTuple

import torch

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.runs import Form, capture_calls, make_batches, make_config, make_trainee, warmup_steps
from benchmarks.gpu.timing import Spread, time_interleaved
from benchmarks.records import Row
from benchmarks.steps import Size, Step
from fastmpl.config import Config
from fastmpl.step.step_graph import GraphedStep

SIZES: Final = {
    "WRN-28-2, 8 + 56": Size("wrn_28_2", 32, 8, 56),
    "WRN-28-2, 64 + 448": Size("wrn_28_2", 32, 64, 448),
    "ResNet-50, 8 + 56": Size("timm:resnet50", 224, 8, 56, classes=1000),
    "ResNet-50, 32 + 224": Size("timm:resnet50", 224, 32, 224, classes=1000),
}
SMALL: Final = {"conv, 4 + 8": Size("conv", 8, 4, 8), "ResNet-10, 2 + 4": Size("timm:resnet10t", 32, 2, 4)}
SCHEDULES: Final[dict[str, Form]] = {
    "split": {},
    "joint": {"system.schedule": "joint"},
    "split, deferred": {"system.deferred": True},
    "split, recomputed": {"system.recompute": True},
}
FEEDBACKS: Final[dict[str, Form]] = {
    "exact": {"method.targets": "soft", "feedback.kind": "exact"},
    "scalar": {"method.targets": "sampled", "feedback.kind": "scalar"},
    "per example": {"method.targets": "sampled", "feedback.kind": "per_example"},
    "off": {"method.targets": "soft", "feedback.kind": "off"},
}
FIRST: Final = (("split", "exact"), ("split", "scalar"))  # what most runs use, at every size before the rest


def _precision(setting: Setting) -> Literal["float32", "bf16"]:
    return "float32" if setting.is_imitated else "bf16"


class Timed(NamedTuple):
    """How often each variant is called."""

    samples: int
    warmup: int


def config_of(size: Size, form: Form, setting: Setting) -> Config:
    """The settings of `benchmarks.steps.Step`, as a run has them: no averages, and a constant rate."""
    network = {"model": size.model, "optimiser": "nesterov", "warmup": 0, "schedule": "constant"}
    return make_config(
        form,
        {
            "run": {"steps": 1000},
            "data": {
                "source": "folder", "root": "unused", "image_size": size.pixels,
                "batch_labelled": size.labelled, "batch_unlabelled": size.unlabelled,
            },
            "teacher": network,
            "student": {**network, "average": 0.0},
            "uda": {"weight": 1.0, "ramp": 0},
            "system": {"precision": _precision(setting)},
        },
    )  # fmt: skip


@cache
def _published(size: Size, setting: Setting, compiler: str = "") -> Step:
    return Step(
        size,
        schedule="published",
        precision=_precision(setting),
        channels_last=True,
        device=setting.device,
        compiler=compiler,
    )


def _timed(setting: Setting) -> Timed:
    return Timed(1, 0) if setting.is_imitated else Timed(15, 3)


def _columns(times: dict[str, Spread], baseline: str) -> Row:
    row: Row = {}
    for name, found in times.items():
        row |= {f"{name}_ms": 1e3 * found.median, f"{name}_ms_q1": 1e3 * found.low, f"{name}_ms_q3": 1e3 * found.high}
        if name != baseline:
            row[f"{name}_speed"] = times[baseline].median / found.median
    return row


def _peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Bytes allocated at the worst moment of one call, with all that exists."""
    if device.type != "cuda":
        call()
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def time_step(size: Size, form: Form, setting: Setting) -> Row:
    """Eager and captured, and the published order in turn with both."""
    timed = _timed(setting)
    config = config_of(size, form, setting)
    with capture_calls(setting) as device:
        batch = make_batches(config, 1, device, size.classes)[0]
        eager, captured = (make_trainee(config, device, size.classes).step for _ in range(2))
        graphed = GraphedStep(captured, device)
        for _ in range(warmup_steps() + 1):
            graphed(batch)
        variants: dict[str, Callable[[], object]] = {
            "published": _published(size, setting),
            "eager": partial(eager, batch),
            "captured": partial(graphed, batch),
        }
        times = time_interleaved(variants, setting.device, samples=timed.samples, warmup=timed.warmup)
        peak = _peak_bytes(partial(eager, batch), setting.device)
    return _columns(times, "published") | {"eager_peak_bytes": peak}


def time_compiled(size: Size, setting: Setting) -> Row:
    """The published order with its networks compiled, beside the same eager."""
    device, timed = setting.device, _timed(setting)
    backend = "eager" if setting.is_imitated else "inductor"
    compiled = _published(size, setting, backend)
    variants: dict[str, Callable[[], object]] = {"published": _published(size, setting), "compiled": compiled}
    times = time_interleaved(variants, device, samples=timed.samples, warmup=timed.warmup)
    return _columns(times, "published") | {"backend": backend}


def cases(setting: Setting) -> Cases:
    sizes = SMALL if setting.is_imitated else SIZES
    seconds = 120.0 if setting.is_imitated else 45.0  # an imitated device shares the cores of the machine
    every = [(schedule, feedback) for schedule in SCHEDULES for feedback in FEEDBACKS]
    later = [pair for pair in every if pair not in FIRST]

    def case(name: str, schedule: str, feedback: str) -> Case:
        form = {**SCHEDULES[schedule], **FEEDBACKS[feedback]}
        return Case(f"{name}: {schedule}, {feedback}", partial(time_step, sizes[name], form, setting), seconds)

    most = list(sizes)[:1] if setting.is_imitated else list(sizes)
    return [
        *(case(name, *pair) for name in sizes for pair in FIRST),
        *(Case(f"{name}: published, compiled", partial(time_compiled, sizes[name], setting), 90) for name in most),
        *(case(name, *pair) for name in most for pair in later),
    ]
