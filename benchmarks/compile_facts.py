"""The Triton kernels' machine code on sm_80, sm_90 and sm_100: registers, spills, loads in flight, bytes a row.

    python -m benchmarks.compile_facts

Writes two records: one of the losses, one of batch norm. They are facts of compilation, made on any machine, and claim
no speed.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import triton

from benchmarks.machine_code import ARCHITECTURES, MachineCode, compile_kernel
from benchmarks.records import Record, Row, Scalar, save
from fastmpl_kernels.batch_norm_act.implementations import MOST_PROGRAMS
from fastmpl_kernels.batch_norm_act.triton_constants import COLUMNS, PARTS, constants_kernel, moments_kernel
from fastmpl_kernels.batch_norm_act.triton_impl import derivative_kernel, forward_kernel
from fastmpl_kernels.batch_norm_act.triton_sums import gradient_sums_kernel, sums_kernel
from fastmpl_kernels.batch_norm_act.triton_tiles import tile
from fastmpl_kernels.soft_cross_entropy.triton_impl import cross_entropy_rows
from fastmpl_kernels.student_objective.native import TARGETS
from fastmpl_kernels.student_objective.triton_impl import student_rows
from fastmpl_kernels.teacher_objective.native import KINDS
from fastmpl_kernels.teacher_objective.triton_impl import teacher_rows
from fastmpl_kernels.triton_rows import launch_shape

CLASSES = (2, 10, 17, 100, 1000, 8000, 21841)
ELEMENT_BYTES = {"bf16": 2, "fp32": 4}


# Device launches of one call, forward and backward (tests/kernels/test_launches.py counts them): its last program adds the
# rows up, and a gradient of 1 (rows.unit) multiplies nothing. A step of Meta Pseudo Labels calls the first two once each,
# and the third for each validation loss of its credit.
LAUNCHES = {"student_objective": 1, "teacher_objective": 1, "soft_cross_entropy": 1}


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


X, TABLE, SUMS = "*x", "*fp32", "*fp64"  # "*x" stands for a pointer to the activation's type
CONSTANTS = {"ACT": 2, "RESIDUAL": True}
# The parameters of batch norm's kernels by phase, without their sizes.
PHASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "moments": (
        moments_kernel,
        {
            "sums": SUMS,
            **dict.fromkeys(("moments", "weight", "bias", "table", "running_mean", "running_var"), TABLE),
            "P": "i32",
            "momentum": "fp32",
            "eps": "fp32",
            "RUNNING": True,
        },
    ),
    "forward": (
        forward_kernel,
        {
            **dict.fromkeys(("x_at", "residual_at", "y_at"), X),
            "moments": TABLE,
            "table": TABLE,
            "M": "i32",
            "slope": "fp32",
            **CONSTANTS,
        },
    ),
    "gradient_sums": (
        gradient_sums_kernel,
        {
            **dict.fromkeys(("dy_at", "x_at", "residual_at"), X),
            "moments": TABLE,
            "weight": TABLE,
            "bias": TABLE,
            "out": SUMS,
            "M": "i32",
            "rows_per_part": "i32",
            "slope": "fp32",
            **CONSTANTS,
        },
    ),
    "constants": (
        constants_kernel,
        {
            **dict.fromkeys(("moments", "weight", "bias", "weight_tangent", "bias_tangent"), TABLE),
            **dict.fromkeys(("dweight", "dbias", "table"), TABLE),
            "sums": SUMS,
            "local": SUMS,
            "P": "i32",
            "Q": "i32",
            "TANGENT": False,
            "RANKS": False,
        },
    ),
}
for _phase in ("sums", "add_sums"):
    PHASES[_phase] = (
        sums_kernel,
        {"x_at": X, "addend_at": X, "out": SUMS, "M": "i32", "rows_per_part": "i32", "ADD": _phase == "add_sums"},
    )
for _phase in ("gradient", "joined_gradient", "tangent"):
    _views = ("in_at", "x_at", "residual_at", "residual_in_at", "out_at", "residual_out_at")
    PHASES[_phase] = (
        derivative_kernel,
        {
            **dict.fromkeys(_views, X),
            "moments": TABLE,
            "table": TABLE,
            "M": "i32",
            "slope": "fp32",
            **CONSTANTS,
            "TANGENT": _phase == "tangent",
            "JOINED": _phase == "joined_gradient",
        },
    )
FINALISERS = ("moments", "constants")


def compile_phase(phase: str, dtype: str, channels: int, capability: int) -> MachineCode:
    """The machine code of one of batch norm's kernels."""
    kernel, parameters = PHASES[phase]
    arguments = {name: f"*{dtype}" if kind == X else kind for name, kind in parameters.items()}
    if phase in FINALISERS:
        return compile_kernel(kernel, {**arguments, "C": channels, "PARTS": PARTS, "K": COLUMNS}, capability, 4)
    rows, columns = tile(channels, ELEMENT_BYTES[dtype])
    return compile_kernel(kernel, {**arguments, "C": channels, "R": rows, "K": columns}, capability, 4)


def compile_case(case: Case, capability: int) -> MachineCode:
    """The case's machine code."""
    shape = launch_shape(case.classes)
    return compile_kernel(case.kernel, case.arguments, capability, shape.warps, shape.registers)


def record(case: Case, capability: int) -> dict[str, Any]:
    """One line of the record. Where not `one_block`, a row is read again, from the cache, at each walk."""
    found = compile_case(case, capability)
    row_bytes = case.classes * ELEMENT_BYTES[case.dtype]
    return {
        "op": case.op,
        "variant": case.variant,
        "dtype": case.dtype,
        "classes": case.classes,
        "architecture": f"sm_{capability}",
        "warps": launch_shape(case.classes).warps,
        "block": launch_shape(case.classes).block,
        "registers": found.registers,
        "stack_bytes": found.stack_bytes,
        "spills": found.spills,
        "loads_by_bits": dict(found.loads),
        "stores_by_bits": dict(found.stores),
        "row_bytes_floor": row_bytes * (case.rows_read + case.rows_written),
        "rows_read": case.rows_read,
        "rows_written": case.rows_written,
        "walks": case.walks,
        "one_block": launch_shape(case.classes).block >= case.classes,
    }


def rows(lines: list[dict[str, Any]]) -> list[Row]:
    """Registers on each architecture at each class count: a row for each variant of a kernel."""
    found: list[Row] = []
    for i in range(0, len(lines), len(ARCHITECTURES)):
        group = lines[i : i + len(ARCHITECTURES)]
        first = group[0]
        floor = first["rows_read"] + first["rows_written"]
        asked = first["rows_written"] + (first["rows_read"] if first["one_block"] else first["walks"])
        found.append(
            {
                "kernel": f"{first['op']}, {first['variant']}",
                "dtype": first["dtype"],
                "classes": first["classes"],
                "registers sm_80 / 90 / 100": " / ".join(str(line["registers"]) for line in group),
                "spills": max(line["spills"] for line in group),
                "stack": max(line["stack_bytes"] for line in group),
                "bytes a row, at least": first["row_bytes_floor"],
                "bytes asked for, of these": asked / floor,
                "launches": LAUNCHES[first["op"]],
            }
        )
    return found


def phase_row(phase: str, dtype: str, channels: int) -> Row:
    """What one of batch norm's kernels compiles to on each architecture, with a residual and a leaky ReLU."""
    codes = [compile_phase(phase, dtype, channels, capability) for capability in ARCHITECTURES]

    def on_each(values: Iterable[int]) -> str:
        return " / ".join(map(str, values))

    trips = MOST_PROGRAMS // PARTS
    waits = on_each(code.loop_waits * trips for code in codes) if phase in FINALISERS else ""
    return {
        "kernel": f"batch_norm_act, {phase}",
        "dtype": dtype,
        "channels": channels,
        "registers sm_80 / 90 / 100": on_each(code.registers for code in codes),
        "loads in flight": on_each(code.in_flight for code in codes),
        "waits for 512 parts": waits,
        "spills": max(code.spills for code in codes),
        "stack": max(code.stack_bytes for code in codes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("losses", "batch_norm"), help="one of the two records; without it both")
    part = parser.parse_args().part
    if part != "losses":
        passes = [phase_row(phase, dtype, 128) for phase in PHASES for dtype in ELEMENT_BYTES]
        print(save(Record("batch_norm_compile", "table", passes, {"triton": triton.__version__})))
    if part == "batch_norm":
        return
    lines = [record(case, capability) for case in cases() for capability in ARCHITECTURES]
    config: dict[str, Scalar] = {"triton": triton.__version__, "launches": json.dumps(LAUNCHES)}
    print(save(Record("kernel_compile", "table", rows(lines), config)))


if __name__ == "__main__":
    main()
