"""Each kernel's time on the device: its bytes a second as a share of a copy's, beside the reference and torch's own."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.cases import Case, Cases, MissingError, Setting
from benchmarks.gpu.ceilings import copy_rate
from benchmarks.gpu.operations import OPERATIONS, Operation, backend_of, make_inputs, run_on
from benchmarks.gpu.timing import Call, Spread, captured, spread, time_calls
from benchmarks.records import Row
from fastmpl_kernels import dispatch

CACHED: Final = 256 << 20  # bytes of inputs in turn: more than an L2 holds
MOST_SETS: Final = 16
LONGEST_NAME: Final = 60


class Shape(NamedTuple):
    """rows, width and, of maps, the side; see operations.make_inputs."""

    rows: int
    width: int
    side: int = 8


# the logits of 448 images; the maps of WRN-28-2 at 32 px and of ResNet-50; the parameters of both
SHAPES: Final = {
    "rows": (Shape(448, 10), Shape(448, 1000), Shape(448, 21841)),
    "maps": (Shape(448, 32, 32), Shape(448, 128, 8), Shape(224, 256, 56)),
    "parameters": (Shape(163, 1000), Shape(2840, 1000)),
}
SMALL: Final = {"rows": (Shape(8, 10),), "maps": (Shape(4, 16, 8),), "parameters": (Shape(4, 16),)}


def _torch_norm(x: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor) -> list[Tensor]:
    leaves = [value.detach().requires_grad_() for value in (x, weight, bias)]
    scale, shift = (value.float() for value in leaves[1:])
    y = F.leaky_relu(F.batch_norm(leaves[0], None, None, scale, shift, True, 0.1, 1e-5), 0.1)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def _torch_cross_entropy(logits: Tensor) -> list[Tensor]:
    leaf = logits.detach().requires_grad_()
    labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
    loss = F.cross_entropy(leaf, labels, label_smoothing=0.1)
    return [loss.detach(), *torch.autograd.grad(loss, [leaf])]


def _torch_student(label_logits: Tensor, logits: Tensor) -> list[Tensor]:
    leaf = logits.detach().requires_grad_()
    target = torch.softmax(label_logits.float() / 0.7, -1)
    loss = (F.cross_entropy(leaf.float(), target, label_smoothing=0.1, reduction="none")
            * (target.amax(-1) >= 0.05)).mean()  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, [leaf])]


def _torch_update(parameter: Tensor, gradient: Tensor, momentum: Tensor, average: Tensor) -> list[Tensor]:
    """torch's fused SGD and its average, in place."""
    lr = torch.full((), 0.1, device=parameter.device)
    torch._fused_sgd_(
        [parameter], [gradient], [momentum], weight_decay=5e-4, momentum=0.9, lr=lr, dampening=0.0, nesterov=True,
        maximize=False, is_first_step=False,
    )  # fmt: skip
    torch._foreach_lerp_([average], [parameter], 0.01)
    return []


def _update_in_place(parameter: Tensor, gradient: Tensor, momentum: Tensor, average: Tensor) -> list[Tensor]:
    from fastmpl_kernels.sgd_ema import sgd_ema

    p, g, m, a = ([value] for value in (parameter, gradient, momentum, average))
    lr = torch.full((), 0.1, device=parameter.device)
    sgd_ema(p, g, m, a, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True, decay=0.99)
    return []


TORCH: Final[dict[str, Callable[..., list[Tensor]]]] = {
    "batch_norm_act": _torch_norm,
    "student_objective, soft": _torch_student,
    "soft_cross_entropy, labels": _torch_cross_entropy,
    "sgd_ema": _torch_update,
    "global_norm": lambda g: [torch.nn.utils.get_total_norm([g], foreach=True)],
}


@cache
def _copy_rate(device: torch.device, is_small: bool) -> float:
    return copy_rate(device, 1 << (22 if is_small else 31))


def timed_operations() -> list[Operation]:
    """As in the checks, but an update that copies nothing first."""
    return [o._replace(call=_update_in_place) if o.name == "sgd_ema" else o for o in OPERATIONS]


def _in_turn(call: Callable[..., object], sets: list[list[Tensor]]) -> Call:
    """One call on every set of inputs, so that none of them is in the cache when it is read."""

    def run() -> None:
        for inputs in sets:
            call(*inputs)

    return run


def _time_each(call: Callable[..., object], sets: list[list[Tensor]], setting: Setting) -> tuple[Spread, Spread]:
    """Seconds of one call: within a graph, where only the device counts, and called from the host."""
    samples = 3 if setting.is_imitated else 15
    run = _in_turn(call, sets)
    plain = time_calls(run, setting.device, samples=samples, calls=1)
    graph = captured(run, setting.device)
    inside = time_calls(graph, setting.device, samples=samples, calls=1)
    return (spread([t / len(sets) for t in inside]), spread([t / len(sets) for t in plain]))


def time_operation(operation: Operation, shape: Shape, dtype: torch.dtype, setting: Setting) -> Row:
    """The kernel, the reference and torch's own on the same inputs."""
    device = setting.device
    sizes = {"dtype": dtype, "device": device, "side": shape.side}
    first = make_inputs(operation, shape.rows, shape.width, **sizes)  # type: ignore[arg-type]
    largest = max(x.nbytes for x in first)
    moved = operation.moved * largest
    total = sum(x.nbytes for x in first)
    count = 1 if setting.is_imitated else min(max(-(-CACHED // total), 1), MOST_SETS)
    sets = [first, *([x.clone() for x in first] for _ in range(count - 1))]
    backend = backend_of(device)

    def on(choice: dispatch.Choice) -> Callable[..., object]:
        return lambda *inputs: run_on(operation, choice, list(inputs))

    inside, called = _time_each(on(backend), sets, setting)
    rate = moved / inside.median
    row: Row = {
        "us": 1e6 * inside.median,
        "us_q1": 1e6 * inside.low,
        "us_q3": 1e6 * inside.high,
        "us_called": 1e6 * called.median,
        "bytes": moved,
        "bytes_per_second": rate,
        "share_of_copy": rate / _copy_rate(device, setting.is_imitated),
    }
    others: dict[str, Any] = {"reference": on("reference")}
    if operation.name in TORCH:
        others["torch"] = TORCH[operation.name]
    for name, call in others.items():
        row[f"{name}_us"] = 1e6 * _time_each(call, sets, setting)[0].median
        row[f"speed_over_{name}"] = float(row[f"{name}_us"]) / (1e6 * inside.median)  # type: ignore[arg-type]
    return row


def list_launches(operation: Operation, shape: Shape, dtype: torch.dtype, setting: Setting) -> Row:
    """Microseconds of each kernel of one call, forward and backward: sums, finalisers and the rest apart."""
    if setting.is_imitated:
        raise MissingError("needs a GPU: a CPU's operations launch no kernels")
    inputs = make_inputs(operation, shape.rows, shape.width, dtype, setting.device, side=shape.side)
    backend = backend_of(setting.device)
    for _ in range(3):
        run_on(operation, backend, inputs)
    calls = 10
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            run_on(operation, backend, inputs)
        torch.cuda.synchronize()
    times = {event.key[:LONGEST_NAME]: event.self_device_time_total / calls for event in found.key_averages()}
    return {name: us for name, us in times.items() if us > 0}


def cases(setting: Setting) -> Cases:
    shapes: Any = SMALL if setting.is_imitated else SHAPES

    def name(operation: Operation, shape: Shape, dtype: torch.dtype) -> str:
        sizes = [shape.rows, shape.width, *([shape.side, shape.side] if operation.kind == "maps" else [])]
        return f"{operation.name}, {' x '.join(map(str, sizes))}, {str(dtype).removeprefix('torch.')}"

    every = [(operation, shape) for operation in timed_operations() for shape in shapes[operation.kind]]
    times = [
        Case(name(o, shape, dtype), partial(time_operation, o, shape, dtype, setting))
        for o, shape in every
        for dtype in o.types[-1:]  # bf16, where it has it
    ]
    launches = [
        Case(f"launches of {name(o, shape, o.types[-1])}", partial(list_launches, o, shape, o.types[-1], setting))
        for o, shape in every
        if shape.width != 21841
    ]
    return times + launches
