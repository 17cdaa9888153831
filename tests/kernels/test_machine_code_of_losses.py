"""The machine code of the row kernels, compiled for GPUs that this machine does not have. Nothing runs."""

import os
from functools import cache

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="compiles for real: unset TRITON_INTERPRET"
)

# 64 registers leave 32 warps a multiprocessor, 56 leave 36. Before Triton 3.8 the teacher's kernel takes 60.
REGISTERS = {"student_objective": 48, "teacher_objective": 56, "soft_cross_entropy": 64}
BEFORE_3_8 = {**REGISTERS, "teacher_objective": 64}
SLOW = pytest.mark.slow
ARCHITECTURES = [pytest.param(80, marks=SLOW), 90, pytest.param(100, marks=SLOW)]


@cache
def compile_cases(classes: int, capability: int):  # type: ignore[no-untyped-def]
    from benchmarks import compiled_losses

    return [(case, compiled_losses.compile_case(case, capability)) for case in compiled_losses.cases((classes,))]


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_rows_of_1000_classes_are_read_and_written_once_in_128_bits(capability: int) -> None:
    for case, found in compile_cases(1000, capability):
        vectors = 2 if case.dtype == "fp32" else 1  # 8 columns a thread
        labelled = case.op == "teacher_objective"  # the labelled rows' branch: one row in, one out
        assert found.loads["128"] == vectors * (case.rows_read + labelled), (case[:4], found)
        assert found.stores["128"] == vectors * (case.rows_written + labelled), (case[:4], found)
        assert found.loads["16"] == 0, (case[:4], found)  # no column is read alone


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_registers_stay_low_at_1000_classes(capability: int) -> None:
    import triton

    newer = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)
    for case, found in compile_cases(1000, capability):
        assert found.registers <= (REGISTERS if newer else BEFORE_3_8)[case.op], (case[:4], found)


@pytest.mark.parametrize("capability", ARCHITECTURES)
@pytest.mark.parametrize(
    "classes", [pytest.param(10, marks=SLOW), 1000, pytest.param(8000, marks=SLOW), pytest.param(21841, marks=SLOW)]
)
def test_nothing_spills(classes: int, capability: int) -> None:
    for case, found in compile_cases(classes, capability):
        assert found.spills == 0, (case[:4], found)
        assert found.stack_bytes == 0, (case[:4], found)
