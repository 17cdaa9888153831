"""The Triton kernels' machine code on sm_80, sm_90 and sm_100: registers, spills, loads in flight, bytes a row.

    python -m benchmarks.compile_facts

Writes two records: one of the losses, one of batch norm. They are facts of compilation, made on any machine, and claim
no speed.
"""

import argparse
import json
from collections.abc import Iterable
from typing import Any

import triton

from benchmarks.compiled_losses import Case, cases, compile_case
from benchmarks.compiled_norms import FINALISERS, PHASES, compile_phase
from benchmarks.machine_code import ARCHITECTURES, ELEMENT_BYTES
from benchmarks.records import Record, Row, Scalar, save
from fastmpl_kernels.batch_norm_act.implementations import MOST_PROGRAMS
from fastmpl_kernels.batch_norm_act.triton_constants import PARTS
from fastmpl_kernels.triton_rows import launch_shape

# Device launches of one call, forward and backward (tests/kernels/test_launches.py counts them): its last program adds the
# rows up, and a gradient of 1 (rows.unit) multiplies nothing. A step of Meta Pseudo Labels calls the first two once each,
# and the third for each validation loss of its credit.
LAUNCHES = {"student_objective": 1, "teacher_objective": 1, "soft_cross_entropy": 1}


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
