"""The dispatcher falls back to the reference where Triton cannot run a kernel, once, and says why."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import batch_norm_act
from fastmpl_kernels.sgd_ema import global_norm, sgd_ema
from fastmpl_kernels.soft_cross_entropy import soft_cross_entropy
from fastmpl_kernels.student_objective import student_objective
from fastmpl_kernels.teacher_objective import teacher_objective

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from triton.compiler.errors import CompilationError

from fastmpl_kernels.batch_norm_act import triton_impl as batch_norm
from fastmpl_kernels.sgd_ema import triton_impl as optimiser
from fastmpl_kernels.soft_cross_entropy import triton_impl as cross_entropy
from fastmpl_kernels.student_objective import triton_impl as student
from fastmpl_kernels.teacher_objective import triton_impl as teacher

LABELS = torch.arange(6) % 4


def logits() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


def run_batch_norm() -> list[Tensor]:
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    running = [torch.zeros(4), torch.ones(4)]
    x.requires_grad_()
    y = batch_norm_act(x, torch.ones(4), torch.zeros(4), running_mean=running[0], running_var=running[1])
    return [y.detach(), *torch.autograd.grad(y.square().sum(), x), *running]


def run_step() -> list[Tensor]:
    lists = [[torch.full((5,), float(n))] for n in range(1, 4)]
    sgd_ema(lists[0], lists[1], lists[2], None, lr=torch.tensor(0.1), momentum=0.9)
    return [lists[0][0], lists[2][0]]


def run_loss(loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    z = logits()
    value = loss(z)
    return [value.detach(), *torch.autograd.grad(value, z)]


OPS: dict[str, tuple[Any, str, Callable[[], list[Tensor]]]] = {
    "batch_norm_act": (batch_norm, "sums_kernel", run_batch_norm),
    "sgd_ema": (optimiser, "_sgd_ema_kernel", run_step),
    "global_norm": (optimiser, "_squares_kernel", lambda: [global_norm([torch.ones(5)])]),
    "soft_cross_entropy": (
        cross_entropy, "cross_entropy_rows", lambda: run_loss(lambda z: soft_cross_entropy(z, LABELS))
    ),
    "student_objective": (
        student, "student_rows", lambda: run_loss(lambda z: student_objective(z.detach().flip(0), z).loss)
    ),
    "teacher_objective": (
        teacher, "teacher_rows", lambda: run_loss(lambda z: teacher_objective(z, LABELS, z.detach()).loss)
    ),
}  # fmt: skip
each_op = pytest.mark.parametrize("op", OPS)


class Uncompilable:
    """Stands in for a kernel that Triton does not compile on this GPU."""

    def __init__(self, error: Exception | None = None) -> None:
        self.launches, self.error = 0, error

    def __getitem__(self, grid: Any) -> Any:
        def launch(*_: Any, **__: Any) -> None:
            self.launches += 1
            raise self.error or CompilationError("x = tl.dot(a, b)", None, "not supported on this architecture")

        return launch


@pytest.fixture(autouse=True)
def forget_fallbacks() -> Iterator[None]:
    dispatch.forget_fallbacks()
    yield
    dispatch.forget_fallbacks()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `auto` take Triton, as it does for tensors of a GPU."""
    monkeypatch.setattr(dispatch, "is_on_gpu", lambda *_: True)


def plant(monkeypatch: pytest.MonkeyPatch, op: str, error: Exception | None = None) -> Uncompilable:
    module, kernel, _ = OPS[op]
    planted = Uncompilable(error)
    monkeypatch.setattr(module, kernel, planted)
    return planted


@each_op
@pytest.mark.usefixtures("gpu")
def test_a_kernel_that_does_not_compile_leaves_the_reference(
    op: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with dispatch.use("reference"):
        expected = OPS[op][2]()
    planted, heard = plant(monkeypatch, op), []
    stop = dispatch.on_fallback(lambda name, reason: heard.append((name, reason)))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(OPS[op][2](), expected, rtol=0, atol=0)
            assert dispatch.last_backend(op) == "reference"
    stop()
    assert planted.launches == 1  # it is not tried again
    assert [name for name, _ in heard] == [op]
    assert "not supported on this architecture" in dispatch.fallbacks()[op]
    assert sum("not supported on this architecture" in record.message for record in caplog.records) == 1


@each_op
def test_a_backend_asked_for_by_name_raises_with_the_reason(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, op)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with (
        dispatch.use("triton"),
        pytest.raises(dispatch.BackendError, match=f"{op}.*not supported on this architecture"),
    ):
        OPS[op][2]()
    assert not dispatch.fallbacks()


@each_op
@pytest.mark.usefixtures("gpu")
def test_a_capture_raises_instead_of_falling_back(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, op)
    monkeypatch.setattr(dispatch, "is_capturing", lambda _: True)
    with pytest.raises(dispatch.BackendError, match=r"inside a CUDA graph capture.*run one step before"):
        OPS[op][2]()
    assert not dispatch.fallbacks()


@pytest.mark.usefixtures("gpu")
def test_what_the_device_reports_is_no_reason_to_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "soft_cross_entropy", torch.OutOfMemoryError("no memory left"))
    with pytest.raises(torch.OutOfMemoryError):
        OPS["soft_cross_entropy"][2]()
    assert not dispatch.fallbacks()


@pytest.mark.usefixtures("gpu")
def test_running_statistics_move_once_where_the_last_of_three_kernels_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with dispatch.use("reference"):
        expected = run_batch_norm()

    class Moves:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **_: [t.add_(1) for t in arguments[5:7]]

    class Passes:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *_, **__: None

    monkeypatch.setattr(batch_norm, "sums_kernel", Passes())
    monkeypatch.setattr(batch_norm, "moments_kernel", Moves())
    monkeypatch.setattr(batch_norm, "forward_kernel", Uncompilable())
    torch.testing.assert_close(run_batch_norm(), expected, rtol=0, atol=0)
