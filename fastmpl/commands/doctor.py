"""`fastmpl doctor`: what this machine has, and whether the kernels that would run here compute what they should.

Nothing optional is imported to be looked at, but for what is checked by running it. On a GPU the graph of a small step
is compared with its eager execution too.
"""

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from fastmpl.errors import FastMPLError
from fastmpl.learners.optimiser_rows.apex import apex_state
from fastmpl_kernels import dispatch, library
from fastmpl_kernels.batch_norm_act import batch_norm_act
from fastmpl_kernels.sgd_ema import sgd_ema
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.student_objective import student_objective
from fastmpl_kernels.teacher_objective import ExactFeedback, UdaSettings, teacher_objective

SHARED_MEMORY: Final = 64 * 2**20  # bytes of /dev/shm that ranks on one machine may need
TOLERANCE: Final = 1e-5  # of the largest value, in float32
PACKAGES: Final = {
    "timm": ("timm",),
    "DALI": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    "DeepSpeed": ("deepspeed",),
    "Triton": ("triton",),
    "tensorboard": ("tensorboard",),
}
WITHOUT: Final = {
    "timm": "networks named timm:NAME cannot be used",
    "DALI": 'no training: pip install "fastmpl[data]"',
    "DeepSpeed": 'one process, or several by torchrun, without ZeRO: pip install "fastmpl[sharded]"',
    "Triton": "the kernels' reference forms serve on a GPU",
    "tensorboard": 'no tensorboard/ in a run\'s folder: pip install "fastmpl[trackers]"',
}
APEX: Final = {
    "absent": "not installed; never needed. docs/apex.md says how it is built",
    "unrelated": "ignored: this is the unrelated PyPI package of that name (docs/apex.md)",
    "python only": "ignored: built without its CUDA extension amp_C (docs/apex.md)",
    "no gpu": "there, and waits for a GPU",
    "usable": 'there: optimiser = "apex:FusedSGD", "apex:FusedAdam", "apex:FusedLAMB"',
}


class Finding(NamedTuple):
    """One line. `bad` is what must not be; `none` what may be missing."""

    state: Literal["ok", "none", "bad"]
    topic: str
    sentence: str


class DoctorError(FastMPLError):
    """Something computes wrongly here."""

    topic = "Doctor"


def examine() -> Iterator[Finding]:
    """Everything that was looked at, in order."""
    yield from examine_machine()
    yield from examine_packages()
    yield from compare_kernels()
    yield from compare_graph()


def lines() -> Iterator[str]:
    """The findings, one a line. Raises DoctorError at the end where one is bad."""
    bad = []
    for finding in examine():
        yield f"{finding.state:5}{finding.topic:19}{finding.sentence}"
        bad += [finding.topic] if finding.state == "bad" else []
    if bad:
        raise DoctorError(f"{', '.join(bad)}: see above. --system.kernels reference trains without the fused kernels.")


def examine_machine() -> Iterator[Finding]:
    """The processor, the GPUs, the room that ranks share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "ok",
        "Python",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores",
    )
    yield Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        yield Finding("none", "GPU", "none: steps run on the CPU, one operation after the other")
    for number in range(count):
        found = torch.cuda.get_device_properties(number)
        size = f"{found.total_memory / 2**30:.0f} GiB"
        yield Finding("ok", f"GPU {number}", f"{found.name}, {size}, compute {found.major}.{found.minor}")
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    enough = free >= SHARED_MEMORY
    told = f"{free / 2**20:,.0f} MiB free" + ("" if enough else ": several ranks on this machine may need more")
    yield Finding("ok" if enough else "none", "/dev/shm", told)


def examine_packages() -> Iterator[Finding]:
    """What can be installed beside the requirements, by its metadata."""
    for name, distributions in PACKAGES.items():
        found = [f"{each} {number}" for each in distributions if (number := _installed_version(each))]
        yield Finding("ok" if found else "none", name, ", ".join(found) or f"not installed: {WITHOUT[name]}")
    state = apex_state()
    yield Finding("ok" if state == "usable" else "none", "apex", APEX[state])


def compare_kernels() -> Iterator[Finding]:
    """Every fused operation as it would run here, against its reference: results and gradients in float32."""
    native = library.available()
    yield Finding("ok" if native else "none", "native kernels", "built" if native else "not built: no C++ compiler")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, run in CASES.items():
        yield _compare_kernel(name, run, device)


def compare_graph() -> Iterator[Finding]:
    """A step as one CUDA graph against the same step executed eagerly, bit for bit."""
    if not torch.cuda.is_available():
        yield Finding("none", "CUDA graph", "not tried: no GPU")
        return
    from fastmpl.step.step_graph import CaptureError

    try:
        differing = _differing_steps(torch.device("cuda", 0))
    except CaptureError as error:
        yield Finding("bad", "CUDA graph", f"steps are taken one by one: they cannot be captured ({error.reason})")
        return
    sentence = f"steps {differing} differ from eager ones" if differing else "equal to eager steps, bit for bit"
    yield Finding("bad" if differing else "ok", "CUDA graph", sentence)


def _installed_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _compare_kernel(name: str, run: Callable[[torch.device], Sequence[Tensor]], device: torch.device) -> Finding:
    try:
        with dispatch.use("auto"):
            ours, backend = run(device), dispatch.last_backend(name)
    except Exception as error:  # whatever a driver or compiler raises is the finding
        return Finding("bad", name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    with dispatch.use("reference"):
        expected = run(device)
    sizes = [b.abs().max().clamp(min=1e-6) for b in expected]
    worst = max(float((a - b).abs().max() / size) for a, b, size in zip(ours, expected, sizes, strict=True))
    right = worst <= TOLERANCE  # false for NaN too
    if right and (reason := dispatch.fallbacks().get(name)):
        said = f"{backend}, slower: its Triton kernel cannot run here ({reason})"
        return Finding("none", name, said)
    return Finding("ok" if right else "bad", name, f"{backend}: {worst:.0e} from the reference")


def _logits(device: torch.device, seed: int, rows: int = 48, classes: int = 100) -> Tensor:
    drawn = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    return (3 * drawn).to(device).requires_grad_()


def _labels(device: torch.device) -> Tensor:
    return (torch.arange(48) % 100).to(device)


def _with_gradients(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def _soft_cross_entropy(device: torch.device) -> list[Tensor]:
    x = _logits(device, 0)
    return _with_gradients(soft_cross_entropy(x, _labels(device), label_smoothing=0.1), x)


def _student_objective(device: torch.device) -> list[Tensor]:
    x = _logits(device, 0)
    return _with_gradients(student_objective(_logits(device, 1), x, temperature=0.7).loss, x)


def _teacher_objective(device: torch.device) -> list[Tensor]:
    labelled, strong, weak = (_logits(device, seed) for seed in range(3))
    one = torch.ones((), device=device)
    feedback = ExactFeedback(_logits(device, 3).detach(), one / 48, one)
    uda = UdaSettings(one, 0.7, 0.6)
    found = teacher_objective(labelled, _labels(device), strong, weak.detach(), uda=uda, feedback=feedback)
    return _with_gradients(found.loss, labelled, strong)


def _batch_norm_act(device: torch.device) -> list[Tensor]:
    drawn = torch.randn(8, 32, 9, 9, generator=torch.Generator().manual_seed(0))
    x = drawn.to(device, memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.linspace(0.5, 1.5, 32, device=device).requires_grad_() for _ in range(2))
    y = batch_norm_act(x, weight, bias)
    return [y.detach(), *_with_gradients(y.square().mean(), x, weight, bias)]


def _sgd_ema(device: torch.device) -> list[Tensor]:
    p, g, buffer, average = (_logits(device, seed).detach() for seed in range(4))
    rate = torch.full((), 0.1, device=device)
    sgd_ema([p], [g], [buffer], [average], lr=rate, momentum=0.9, weight_decay=0.01, nesterov=True, decay=0.99)
    return [p, buffer, average]


CASES: Final[dict[str, Callable[[torch.device], list[Tensor]]]] = {
    "soft_cross_entropy": _soft_cross_entropy,
    "student_objective": _student_objective,
    "teacher_objective": _teacher_objective,
    "batch_norm_act": _batch_norm_act,
    "sgd_ema": _sgd_ema,
}


def _differing_steps(device: torch.device) -> list[int]:
    """Steps of two equal trainees, one of them captured, whose reports are not the same."""
    from fastmpl.analysis.fake_run import make_fake_batch
    from fastmpl.config import Config, DataConfig, StudentConfig, TeacherConfig
    from fastmpl.run.build import Trainee, assemble
    from fastmpl.step.step_graph import WARMUP, GraphedStep

    shape, network = (3, 8, 8), {"model": "conv", "width": 32}
    config = Config(
        data=DataConfig(batch_labelled=16, batch_unlabelled=32),
        teacher=TeacherConfig(**network),  # type: ignore[arg-type]
        student=StudentConfig(**network),  # type: ignore[arg-type]
    )

    def trainee() -> Trainee:
        return assemble(config, classes=10, image_shape=shape, device=device, fixed_teacher=torch.nn.Identity)

    eager, captured = trainee(), trainee()
    graphed, differing = GraphedStep(captured.step, device), []
    empty = make_fake_batch(config, shape, 10)
    draws = torch.Generator().manual_seed(0)
    for step in range(1, WARMUP + 5):
        parts = (p if p is None or not p.is_floating_point() else torch.randn(p.shape, generator=draws) for p in empty)
        batch = type(empty)(*parts)  # type: ignore[arg-type]
        expected, found = eager.step(batch.to(device)), graphed(batch)
        differing += [] if all(map(torch.equal, expected, found)) else [step]
    return differing
