"""Every kernel against float64: small and large, at odd addresses, three times the same, on two streams at once."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Cases, MissingError, Setting
from benchmarks.gpu.operations import (
    LAYOUTS,
    OPERATIONS,
    Layout,
    Operation,
    backend_of,
    largest_error,
    make_inputs,
    run_on,
)
from benchmarks.records import Row
from fastmpl_kernels import dispatch

ALLOWANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative, beside twice the reference's own error
CLASSES: Final = (10, 1000, 21841)
CHANNELS: Final = (16, 17, 128, 640)  # of WRN-28-2 and ResNet-50; 17: no multiple of a tile
ROUNDS: Final = 20  # of two streams
MOST_COMPILERS: Final = 12  # processes, each with a context of some hundred MB on the GPU
PAST: Final = 2**31 + 12_345  # elements: where 32-bit offsets wrap


class Size(NamedTuple):
    rows: int
    width: int
    layout: Layout


def sizes(operation: Operation, setting: Setting) -> list[Size]:
    """Few rows and many, every width, and each layout; fewer rows where the CPU stands in."""
    rows = (1, 7, 48) if setting.is_imitated else (1, 7, 64, 448)
    widths = CLASSES if operation.kind == "rows" else CHANNELS
    found = [Size(n, width, "plain") for width in widths for n in rows]
    return found + [Size(7, width, layout) for layout in LAYOUTS[1:] for width in widths[:2]]


def _spoil_free_memory(like: list[Tensor]) -> None:
    """Leaves NaN in the memory that the next results will lie in, so that an element left unwritten shows."""
    spoilt = [torch.full_like(x, float("nan")) for x in like for _ in range(2)]
    del spoilt


def check_accuracy(operation: Operation, dtype: torch.dtype, setting: Setting) -> Row:
    """Errors against float64, beside those of the reference in the same type."""
    backend = backend_of(setting.device)
    worst, excess = Size(0, 0, "plain"), -1.0
    errors = (0.0, 0.0)
    for size in sizes(operation, setting):
        inputs = make_inputs(operation, size.rows, size.width, dtype, setting.device, size.layout)
        exact = operation.call(*(x.double() for x in inputs))
        _spoil_free_memory(inputs)
        ours = largest_error(run_on(operation, backend, inputs), exact)
        reference = largest_error(run_on(operation, "reference", inputs), exact)
        share = ours / (2 * reference + ALLOWANCE[dtype])
        if share > excess:
            worst, excess, errors = size, share, (ours, reference)
    return {
        "passed": excess <= 1,
        "backend": str(backend),
        "error": errors[0],
        "reference_error": errors[1],
        "allowed_share": excess,
        "worst": f"{worst.rows} rows, width {worst.width}, {worst.layout}",
    }


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_repeatable(operation: Operation, dtype: torch.dtype, setting: Setting) -> Row:
    """Three calls on the same inputs give the same bits."""
    backend = backend_of(setting.device)
    differing = []
    for size in sizes(operation, setting):
        inputs = make_inputs(operation, size.rows, size.width, dtype, setting.device, size.layout)
        first, *others = (run_on(operation, backend, inputs) for _ in range(3))
        if not all(_equal(first, other) for other in others):
            differing.append(f"{size.rows} x {size.width}, {size.layout}")
    return {"passed": not differing, "why": "; ".join(differing)}


def _streams(device: torch.device) -> list[AbstractContextManager[object]]:
    if device.type != "cuda":
        return [nullcontext(), nullcontext()]
    return [torch.cuda.stream(torch.cuda.Stream(device)) for _ in range(2)]  # type: ignore[no-untyped-call]


def check_streams(operation: Operation, dtype: torch.dtype, setting: Setting) -> Row:
    """Calls that overlap on two streams give what they give alone: they share no counter and no scratch memory."""
    backend = backend_of(setting.device)
    rows, width = (48, 1000 if operation.kind == "rows" else 128)
    given = [make_inputs(operation, rows + extra, width, dtype, setting.device) for extra in (0, 1)]
    alone = [run_on(operation, backend, inputs) for inputs in given]
    streams = _streams(setting.device)
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    wrong = 0
    for _ in range(ROUNDS):
        found = []
        for stream, inputs in zip(streams, given, strict=True):
            with stream:
                found.append(run_on(operation, backend, inputs))
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        wrong += sum(not _equal(a, b) for a, b in zip(found, alone, strict=True))
    return {"passed": wrong == 0, "rounds": ROUNDS, "wrong": wrong}


def _require_memory(setting: Setting, needed: int) -> None:
    if setting.is_imitated:
        raise MissingError("needs a GPU: more than 2^31 elements")
    free, _ = torch.cuda.mem_get_info(setting.device)
    if free < needed:
        raise MissingError(f"needs {needed / 2**30:.0f} GiB of the GPU's memory, and {free / 2**30:.0f} GiB are free")


def check_long_rows(operation: Operation, setting: Setting) -> Row:
    """A loss of more than 2^31 logits: the gradients of its last rows are those of the same rows alone.

    Every loss is a mean over rows, so a row's gradient times the number of rows does not depend on the others.
    """
    width, some = 21841, 64
    rows = PAST // width + 1
    _require_memory(setting, 2 * PAST * (2 * operation.inputs + 3))
    inputs = make_inputs(operation, some, width, torch.bfloat16, setting.device)
    large = [x.repeat(-(-rows // some), 1)[-rows:] for x in inputs]
    backend = backend_of(setting.device)
    tail = [x[-some:].clone() for x in large]
    _, *alone = run_on(operation, backend, tail)
    _, *found = run_on(operation, backend, large)
    error = largest_error([g[-some:].float() * rows for g in found], [g.double() * some for g in alone])
    return {"passed": error <= 2e-2, "elements": rows * width, "error": error}


def check_large_maps(setting: Setting) -> Row:
    """A feature map of more than 2^31 values, normalised: the last image and its gradient, from sums in float64."""
    from fastmpl_kernels.batch_norm_act import batch_norm_act

    channels = 64
    _require_memory(setting, 2 * PAST * 8)
    images = PAST // (channels * 32 * 32) + 1
    kind = {"device": setting.device, "dtype": torch.bfloat16}
    x, upstream = (torch.randn(images, 32, 32, channels, **kind).permute(0, 3, 1, 2) for _ in range(2))  # type: ignore[call-overload]
    leaf = x.requires_grad_()
    ones, zeros = torch.ones(channels, device=setting.device), torch.zeros(channels, device=setting.device)
    with dispatch.use(backend_of(setting.device)):
        y = batch_norm_act(leaf, ones, zeros, activation="none")
        (gradient,) = torch.autograd.grad(y, leaf, upstream)
    x = x.detach()

    def mean(of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        total = torch.zeros(channels, dtype=torch.float64, device=setting.device)
        for a, b in zip(x.split(1024), upstream.split(1024), strict=True):
            total += of(a.double(), b.double()).sum((0, 2, 3))
        return (total / (images * 32 * 32)).view(1, -1, 1, 1)

    centre = mean(lambda a, _: a)
    scale = (mean(lambda a, _: (a - centre).square()) + 1e-5).rsqrt()
    moment, slope = mean(lambda _, b: b), mean(lambda a, b: b * (a - centre) * scale)
    last = (x[-1:].double() - centre) * scale
    expected = [last, scale * (upstream[-1:].double() - moment - last * slope)]
    error = largest_error([y[-1:], gradient[-1:]], expected)
    return {"passed": error <= 1e-2, "elements": x.numel(), "error": error}


def check_large_parameters(setting: Setting) -> Row:
    """A parameter of more than 2^31 elements: its last elements move as they do alone, and its norm is right."""
    from fastmpl_kernels.sgd_ema import global_norm, sgd_ema

    _require_memory(setting, 4 * PAST * 5)
    large = [torch.randn(PAST, device=setting.device) for _ in range(4)]
    small = [value[-1000:].clone() for value in large]
    lr = torch.full((), 0.1, device=setting.device)
    with dispatch.use(backend_of(setting.device)):
        for values in (large, small):
            p, g, m, a = ([value] for value in values)
            sgd_ema(p, g, m, a, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True, decay=0.99)
        norm = float(global_norm([large[1].fill_(1.0)]))
    same = all(torch.equal(a[-1000:], b) for i, (a, b) in enumerate(zip(large, small, strict=True)) if i != 1)
    return {"passed": same and abs(norm - PAST**0.5) < 0.01, "elements": PAST, "norm": norm, "expected": PAST**0.5}


def compile_kernels(setting: Setting) -> Row:
    """Compiles what the checks below need, in several processes: one alone would need minutes. No verdict: each check
    compiles what is missing."""
    if setting.is_imitated:
        raise MissingError("needs a GPU: nothing is compiled for a CPU")
    shares = max(1, min(len(os.sched_getaffinity(0)) - 1, MOST_COMPILERS))
    command = [sys.executable, "-m", "benchmarks.gpu.every_kernel", "--share"]
    running = [subprocess.Popen([*command, str(number), str(shares)]) for number in range(shares)]
    return {"processes": shares, "ended_well": sum(process.wait() == 0 for process in running)}


def cases(setting: Setting) -> Cases:
    every = [(operation, dtype) for operation in OPERATIONS for dtype in operation.types]

    def name(operation: Operation, dtype: torch.dtype) -> str:
        return f"{operation.name}, {str(dtype).removeprefix('torch.')}"

    checks = {
        "against float64": check_accuracy,
        "three times": check_repeatable,
        "on two streams": check_streams,
    }
    found = [
        Case(f"{name(operation, dtype)}: {what}", partial(check, operation, dtype, setting), 120)
        for what, check in checks.items()
        for operation, dtype in every
    ]
    found.insert(0, Case("compiled in several processes", partial(compile_kernels, setting), 120))
    rows = [operation for operation in OPERATIONS if operation.kind == "rows"]
    found += [Case(f"{o.name}: past 2^31 elements", partial(check_long_rows, o, setting)) for o in rows]
    found.append(Case("batch_norm_act: past 2^31 elements", partial(check_large_maps, setting)))
    found.append(Case("sgd_ema and global_norm: past 2^31 elements", partial(check_large_parameters, setting)))
    return found
