"""The Triton kernels of the row losses, compiled: every variant that a step can run, and the bytes that it must move."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.machine_code import ELEMENT_BYTES, MachineCode, compile_kernel
from fastmpl_kernels.soft_cross_entropy.triton_impl import cross_entropy_rows
from fastmpl_kernels.student_objective.native import TARGETS
from fastmpl_kernels.student_objective.triton_impl import student_rows
from fastmpl_kernels.teacher_objective.native import KINDS
from fastmpl_kernels.teacher_objective.triton_impl import teacher_rows
from fastmpl_kernels.triton_rows import launch_shape

CLASSES = (2, 10, 17, 100, 1000, 8000, 21841)


class Case(NamedTuple):
    """One compiled variant of a kernel, and the rows an unlabelled (or only) row reads and writes."""

    op: str
    variant: str
    dtype: str
    classes: int
    kernel: Any
    arguments: dict[str, Any]
    rows_read: int
    rows_written: int
    walks: int  # rows asked for where a row is longer than a block and is read again, from the cache, at each walk


def _student(dtype: str, k: int, targets: str) -> Case:
    pointers = (
        {"key_ptr": "*i64", "index_ptr": "*i64"} if targets == "sampled" else {"key_ptr": "none", "index_ptr": "none"}
    )
    arguments = {
        **dict.fromkeys(("label_logits_ptr", "student_logits_ptr", "gradient_ptr"), f"*{dtype}"),
        **pointers,
        **dict.fromkeys(("part_ptr", "parts_ptr"), "*fp32"),
        "arrivals_ptr": "*i32",
        "label_ptr": "*i64",
        "mask_ptr": "*i1",
        **dict.fromkeys(("inverse_temperature", "label_smoothing", "threshold", "inverse_rows"), "fp32"),
        "rows": "i32",
        "LABEL_STRIDE": k,
        "STUDENT_STRIDE": k,
        "K": k,
        "BLOCK": launch_shape(k).block,
        "TARGETS": TARGETS[targets],
        "WITH_GRADIENT": True,
    }
    return Case("student_objective", targets, dtype, k, student_rows, arguments, 2, 1, 6 if targets == "argmax" else 7)


def _teacher(dtype: str, k: int, feedback: str) -> Case:
    """UDA and feedback to the strong view: hard labels read two rows, exact feedback the tangent too."""
    exact = feedback == "exact"
    arguments = {
        **dict.fromkeys(("labelled_ptr", "strong_ptr", "weak_ptr"), f"*{dtype}"),
        **dict.fromkeys(("labelled_gradient_ptr", "strong_gradient_ptr", "weak_gradient_ptr"), f"*{dtype}"),
        "target_ptr": "*i64",
        "drawn_ptr": "none" if exact else "*i64",
        "tangent_ptr": f"*{dtype}" if exact else "none",
        **dict.fromkeys(("uda_weight_ptr", "feedback_weight_ptr", "credit_ptr", "part_ptr", "parts_ptr"), "*fp32"),
        "arrivals_ptr": "*i32",
        "labelled": "i32",
        "programs": "i32",
        **dict.fromkeys(("labelled_share", "unlabelled_share", "supervised_weight", "label_smoothing"), "fp32"),
        **dict.fromkeys(("inverse_temperature", "uda_inverse_temperature", "uda_threshold", "credit_sign"), "fp32"),
        **dict.fromkeys(("LABELLED_STRIDE", "STRONG_STRIDE", "WEAK_STRIDE", "TANGENT_STRIDE", "K"), k),
        "BLOCK": launch_shape(k).block,
        "UDA": True,
        "KIND": KINDS[feedback],
        "CREDIT_A_ROW": feedback == "per_example",
        "ON_WEAK": False,
        "LABELLED_GRADIENT": True,
        "STRONG_GRADIENT": True,
        "WEAK_GRADIENT": False,
    }
    return Case("teacher_objective", feedback, dtype, k, teacher_rows, arguments, 2 + exact, 1, 11 if exact else 8)


def _cross_entropy(dtype: str, k: int, target: str) -> Case:
    hard = target == "label"
    arguments = {
        **dict.fromkeys(("logits_ptr", "gradient_ptr"), f"*{dtype}"),
        "target_ptr": "*i64" if hard else f"*{dtype}",
        **dict.fromkeys(("part_ptr", "loss_ptr"), "*fp32"),
        "arrivals_ptr": "*i32",
        **dict.fromkeys(("label_smoothing", "inverse_rows"), "fp32"),
        "rows": "i32",
        "STRIDE": k,
        "TARGET_STRIDE": 1 if hard else k,
        "K": k,
        "BLOCK": launch_shape(k).block,
        "HARD": hard,
        "WITH_GRADIENT": True,
    }
    return Case(
        "soft_cross_entropy", target, dtype, k, cross_entropy_rows, arguments, 1 + (not hard), 1, 3 if hard else 5
    )


def cases(classes: tuple[int, ...] = CLASSES) -> Iterator[Case]:
    """Every variant that a step can run, by kernel, dtype and class count."""
    for k in classes:
        for dtype in ELEMENT_BYTES:
            yield from (_student(dtype, k, targets) for targets in TARGETS)
            yield from (_teacher(dtype, k, feedback) for feedback in ("exact", "per_example", "scalar"))
            yield from (_cross_entropy(dtype, k, target) for target in ("label", "distribution"))


def compile_case(case: Case, capability: int) -> MachineCode:
    """The case's machine code."""
    shape = launch_shape(case.classes)
    return compile_kernel(case.kernel, case.arguments, capability, shape.warps, shape.registers)
