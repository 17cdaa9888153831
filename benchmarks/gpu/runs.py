"""Small runs for the rows that need a whole step: its forms, their configuration, networks and batches."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import nn

from benchmarks.gpu.cases import MissingError, Setting
from fastmpl.analysis.fake_run import make_fake_batch
from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.models import build_network
from fastmpl.run.build import Trainee, assemble
from fastmpl.step import step_graph
from fastmpl_kernels.library import available

Form = Mapping[str, object]  # dotted keys
Sections = Mapping[str, Mapping[str, object]]
SAMPLED: Final = {"method.targets": "sampled"}
FORMS: Final[dict[str, Form]] = {
    "exact": {},
    "exact, joint, dropout": {"system.schedule": "joint", "student.dropout": 0.2, "teacher.dropout": 0.2},
    "exact, deferred, recomputed": {"system.deferred": True, "system.recompute": True},
    "exact, difference": {"feedback.tangent": "difference"},
    "exact, one block deep": {"feedback.depth": 1},
    "exact, every second step": {"feedback.every": 2},
    "exact, two micro-batches": {"system.accumulate": 2},
    "exact, bf16": {"system.precision": "bf16"},
    "scalar": SAMPLED | {"feedback.kind": "scalar", "feedback.baseline": 0.9},
    "scalar, arg max, weak labels": {
        "method.targets": "argmax", "feedback.kind": "scalar", "method.label_view": "weak"
    },
    "per example, shuffled": SAMPLED | {"feedback.kind": "per_example", "feedback.control": "shuffled"},
    "no feedback": {"feedback.kind": "off"},
    "no consistency": {"uda.weight": 0.0},
    "AdamW, clipped": {"student.optimiser": "adamw", "teacher.optimiser": "adamw", "student.clip": 1.0},
    "Nesterov, fused with the average": {
        "student.optimiser": "fastmpl:sgd_ema", "teacher.optimiser": "fastmpl:sgd_ema"
    },
    "LAMB": {"student.optimiser": "lamb"},
    "group norm": {"student.norm": "group", "teacher.norm": "group"},
    "supervised": {"method.name": "supervised"},
    "uda": {"method.name": "uda"},
    "pseudo labels": {"method.name": "pseudo_label"},
    "distillation": {"method.name": "distillation", "data.store": "store"},
    "reduced": {"method.name": "reduced_mpl", "data.store": "store", "teacher.width": 16, "teacher.depth": 2},
}  # fmt: skip
CLASSES: Final = 10
BASE: Final[Sections] = {
    "run": {"steps": 60},
    "data": {"source": "digits", "image_size": 8, "channels": 3, "batch_labelled": 8, "batch_unlabelled": 16},
    "teacher": {"model": "conv", "width": 32, "warmup": 10},
    "student": {"model": "conv", "width": 32, "warmup": 10},
    "uda": {"ramp": 20},
}


def make_config(form: Form, base: Sections = BASE) -> Config:
    """The base configuration, of which rates and ramps change at every step, with a form's keys over it."""
    tree: dict[str, dict[str, Any]] = {section: dict(keys) for section, keys in base.items()}
    for name, value in form.items():
        section, key = name.split(".")
        tree.setdefault(section, {})[key] = value
    return Config.model_validate(tree)


def image_shape(config: Config) -> tuple[int, ...]:
    return (config.data.channels, config.data.image_size, config.data.image_size)


def make_trainee(config: Config, device: torch.device, classes: int = CLASSES) -> Trainee:
    """Networks and step; two calls give the same ones."""

    def fixed_teacher() -> nn.Module:
        return build_network(config.student, classes=classes, image_shape=image_shape(config), seed=0)

    return assemble(
        config, classes=classes, image_shape=image_shape(config), device=device, fixed_teacher=fixed_teacher
    )


def make_batches(config: Config, count: int, device: torch.device, classes: int = CLASSES) -> list[Batch]:
    """Noise with labels, on the device."""
    generator = torch.Generator().manual_seed(0)
    parts = make_fake_batch(config, image_shape(config), classes)

    def fill(name: str, part: torch.Tensor | None) -> torch.Tensor | None:
        if part is None:
            return None
        if name.startswith("stored"):
            return torch.softmax(torch.randn(part.shape, generator=generator), -1)
        if part.is_floating_point():
            values = torch.empty_like(part)  # keeps the layout
            return values.copy_(torch.randn(part.shape, generator=generator))
        limit = classes if "targets" in name else 1000
        return torch.randint(limit, part.shape, generator=generator)

    made = [
        Batch(*(fill(name, part) for name, part in zip(Batch._fields, parts, strict=True))).to(device)  # type: ignore[arg-type]
        for _ in range(count)
    ]
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # a GraphedStep reads them on a stream of its own
    return made


def warmup_steps() -> int:
    """The eager steps that a GraphedStep takes before it captures."""
    return step_graph.WARMUP


def capture_calls(setting: Setting) -> AbstractContextManager[torch.device]:
    """The device on which a step can be captured: the GPU; the tests' imitation of one, within the block.

    Raises MissingError where the imitation is asked for and the tests are not beside this package.
    """
    if not setting.is_imitated:
        return nullcontext(setting.device)
    if not available():
        raise MissingError("the imitation of a GPU needs the C++ kernels, which are not built")
    try:
        from benchmarks.gpu.imitated import imitated_gpu
    except ImportError as error:
        raise MissingError(f"the imitation of a GPU needs the tests of this repository ({error.name})") from error
    return imitated_gpu()
