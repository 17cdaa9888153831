"""Bytes of a step as predicted on fake tensors of the same device, beside what the allocator gave and reserved."""

from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.runs import (
    FORMS,
    Form,
    Sections,
    capture_calls,
    make_batches,
    make_config,
    make_trainee,
    warmup_steps,
)
from benchmarks.records import Row
from fastmpl.analysis.accounting import measure, predict_cost
from fastmpl.config import Config
from fastmpl.data.batch import Batch
from fastmpl.run.build import Trainee
from fastmpl.step.step_graph import GraphedStep

BLOCK: Final = 512  # bytes that the caching allocator rounds to
WORKSPACE: Final = 64 << 20  # of cuBLAS and cuDNN, which no operator returns
LOWEST, HIGHEST = 0.90, 1.10  # of the prediction, beside the workspace
LARGE: Final[Sections] = {
    "data": {"source": "cifar10", "image_size": 32, "batch_labelled": 64, "batch_unlabelled": 448},
    "teacher": {"model": "wrn_28_2"},
    "student": {"model": "wrn_28_2"},
}
SMALL: Final[Sections] = {
    "data": {"source": "digits", "image_size": 8, "batch_labelled": 8, "batch_unlabelled": 16},
    "teacher": {"model": "wrn_10_1"},
    "student": {"model": "wrn_10_1"},
}
COMPARED: Final = ("exact", "exact, deferred, recomputed", "exact, bf16", "scalar", "no feedback", "AdamW, clipped")


class Held(NamedTuple):
    """A run at a step."""

    trainee: Trainee
    batch: Batch

    def step(self) -> object:
        return self.trainee.step(self.batch)

    def tensors(self) -> list[Tensor]:
        return [*self.trainee.parts().state().values(), *(part for part in self.batch if part is not None)]


def _hold(config: Config, device: torch.device) -> Held:
    return Held(make_trainee(config, device), make_batches(config, 1, device)[0])


def _measured_peak(held: Held, device: torch.device) -> int:
    """Bytes above what exists besides the run, at the worst moment of its second step."""
    if device.type != "cuda":
        return measure(held.step, held.tensors(), round_to=BLOCK).peak_bytes
    others = torch.cuda.memory_allocated(device) - sum(-(-t.nbytes // BLOCK) * BLOCK for t in held.tensors())
    torch.cuda.reset_peak_memory_stats(device)
    held.step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - others


def compare_eager(form: Form, setting: Setting) -> Row:
    """Two-sided: a prediction that is too high costs a user's batch size, one too low their run."""
    device = setting.device
    config = make_config(form, SMALL if setting.is_imitated else LARGE)
    expected = predict_cost(lambda: _hold(config, device), Held.step, Held.tensors, round_to=BLOCK).peak_bytes
    held = _hold(config, device)
    held.step()
    found = _measured_peak(held, device)
    reserved = torch.cuda.memory_reserved(device) if device.type == "cuda" else found
    is_right = LOWEST * expected - BLOCK <= found <= HIGHEST * expected + WORKSPACE
    return {
        "passed": is_right,
        "predicted_bytes": expected,
        "allocated_bytes": found,
        "reserved_bytes": reserved,
        "allocated_over_predicted": found / expected,
    }


def compare_captured(form: Form, setting: Setting) -> Row:
    """What the private pool of a graph reserves beside the eager step's memory: a measurement, not a promise."""
    config = make_config(form, SMALL if setting.is_imitated else LARGE)
    expected = predict_cost(lambda: _hold(config, setting.device), Held.step, Held.tensors, round_to=BLOCK).peak_bytes
    with capture_calls(setting) as device:
        held = _hold(config, device)
        graphed = GraphedStep(held.trainee.step, device)
        for _ in range(warmup_steps()):
            graphed(held.batch)
        before = torch.cuda.memory_reserved(device)
        graphed(held.batch)
        reserved = torch.cuda.memory_reserved(device)
    return {"predicted_bytes": expected, "reserved_eager_bytes": before, "reserved_captured_bytes": reserved}


def cases(setting: Setting) -> Cases:
    return [
        *(Case(f"{name}, eager", partial(compare_eager, FORMS[name], setting)) for name in COMPARED),
        *(Case(f"{name}, captured", partial(compare_captured, FORMS[name], setting)) for name in COMPARED[:2]),
    ]
