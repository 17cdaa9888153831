"""What TF32 costs in precision, and that full precision is full where numbers are compared."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.runs import FORMS, Sections, make_batches, make_config, make_trainee
from benchmarks.records import Row

FULL: Final = 2e-5  # relative error of float32 sums of these lengths; TF32 is near 3e-4
WIDE: Final[Sections] = {
    "data": {"source": "cifar10", "image_size": 32, "batch_labelled": 16, "batch_unlabelled": 16},
    "teacher": {"model": "wrn_10_1"},
    "student": {"model": "wrn_10_1"},
}


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _convolve(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
    x, weight = torch.randn(16, 64, 16, 16, device=device), torch.randn(64, 64, 3, 3, device=device)
    return lambda a, b: F.conv2d(a, b, padding=1), [x, weight]


def _multiply(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return lambda a, b: a @ b, [torch.randn(512, 512, device=device) for _ in range(2)]


def compare_switch(make: Callable[[torch.device], tuple[Callable[..., Tensor], list[Tensor]]], setting: Setting) -> Row:
    """The same operation with torch's switches on and off. Off has to be full precision."""
    call, inputs = make(setting.device)
    exact = call(*(x.double() for x in inputs))
    errors = {}
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
            errors[allowed] = _relative(call(*inputs), exact)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    return {"passed": errors[False] < FULL, "error_on": errors[True], "error_off": errors[False]}


def check_precise_pass(setting: Setting) -> Row:
    """A learner's precise pass, which feedback's differences are taken of, against the network in float64."""
    config = make_config(FORMS["exact"], WIDE)
    learner = make_trainee(config, setting.device).student
    batch = make_batches(config, 1, setting.device)[0]
    draw = torch.zeros((), dtype=torch.int64, device=setting.device)
    found = learner.observe(batch.labelled, draw, precise=True)
    exact = deepcopy(learner.module).double()(batch.labelled.double())
    error = _relative(found, exact.detach())
    return {"passed": error < FULL, "error": error}


def measure_difference(setting: Setting) -> Row:
    """How far apart teachers are that learnt from a tangent by a difference and by forward mode."""
    found = {}
    for tangent in ("jvp", "difference"):
        config = make_config({"feedback.tangent": tangent}, WIDE)
        trainee = make_trainee(config, setting.device)
        batch = make_batches(config, 1, setting.device)[0]
        for _ in range(3):
            trainee.step(batch)
        assert trainee.teacher is not None
        found[tangent] = torch.cat([p.detach().flatten() for p in trainee.teacher.module.parameters()])
    apart = _relative(found["difference"], found["jvp"].double())
    return {"steps": 3, "teachers_apart": apart}


def cases(setting: Setting) -> Cases:
    return [
        Case("convolution", partial(compare_switch, _convolve, setting)),
        Case("matrix product", partial(compare_switch, _multiply, setting)),
        Case("a learner's precise pass", partial(check_precise_pass, setting)),
        Case("difference against forward mode", partial(measure_difference, setting)),
    ]
