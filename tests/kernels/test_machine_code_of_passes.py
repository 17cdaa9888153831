"""Batch norm and the optimiser compile for GPUs that this machine does not have, without spills, with 128-bit accesses."""

from functools import cache

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from benchmarks import compiled_norms
from benchmarks.machine_code import ARCHITECTURES, MachineCode, compile_kernel
from fastmpl_kernels.batch_norm_act.implementations import MOST_PROGRAMS
from fastmpl_kernels.batch_norm_act.triton_constants import PARTS
from fastmpl_kernels.sgd_ema import triton_impl as optimiser

CHANNELS = 2048
PASSES = [(dtype, capability) for dtype, capability in (("bf16", 80), ("bf16", 90), ("bf16", 100), ("fp32", 90))]
each_pass = pytest.mark.parametrize(("dtype", "capability"), PASSES)


@cache
def compile_phase(phase: str, dtype: str, capability: int) -> MachineCode:
    return compiled_norms.compile_phase(phase, dtype, CHANNELS, capability)


# Loads and stores of 128 bits a thread: two for each tensor that the phase reads or writes.
WIDE = {"forward": (4, 2), "gradient": (6, 4), "joined_gradient": (8, 4), "tangent": (8, 2)}
# Tensors that a summing pass reads, each by two copies of 128 bits a tile.
READ = {"sums": 1, "add_sums": 2, "gradient_sums": 3}


@each_pass
@pytest.mark.parametrize("phase", WIDE)
def test_a_pass_that_writes_moves_128_bits_at_once(phase: str, dtype: str, capability: int) -> None:
    code = compile_phase(phase, dtype, capability)
    loads, stores = WIDE[phase]
    assert (code.spills, code.stack_bytes) == (0, 0)
    assert code.loads["128"] == loads
    assert code.stores["128"] == stores
    assert code.registers <= 128  # 16 warps a multiprocessor at least


@each_pass
@pytest.mark.parametrize("phase", READ)
def test_a_pass_that_sums_has_three_tiles_in_flight(phase: str, dtype: str, capability: int) -> None:
    code = compile_phase(phase, dtype, capability)
    assert (code.spills, code.stack_bytes) == (0, 0)
    assert set(code.copies) == {"128"}
    assert code.loop_loads == 2 * READ[phase]
    assert (code.in_flight, code.loop_waits) == (3 * code.loop_loads, 1)
    assert code.registers <= 128


@pytest.mark.parametrize("capability", ARCHITECTURES)
@pytest.mark.parametrize("phase", ["moments", "constants"])
def test_a_finaliser_waits_for_groups_of_parts_and_not_for_each(phase: str, capability: int) -> None:
    code = compile_phase(phase, "bf16", capability)
    assert (code.spills, code.stack_bytes) == (0, 0)
    assert code.in_flight >= 4
    assert code.loop_waits * (MOST_PROGRAMS // PARTS) <= 40  # it was 384 and more, one for some part
    assert code.registers <= 128


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_optimiser_reads_and_writes_whole_blocks_128_bits_wide(architecture: int) -> None:
    pointers = dict.fromkeys(("addresses", "sizes"), "*i64") | dict.fromkeys(("tensors", "blocks"), "*i32")
    scalars = dict.fromkeys(("lr_at", "clip_factor", "found_inf", "decay"), "*fp32")
    rest = {"count": "i32", "momentum": "fp32", "weight_decay": "fp32"}
    flags = dict.fromkeys(("NESTEROV", "AVERAGE", "CLIP", "SKIP", "ALIGNED"), True)
    arguments = {**pointers, **scalars, **rest, **flags, "BLOCK": optimiser.BLOCK}
    code = compile_kernel(optimiser._sgd_ema_kernel, arguments, architecture, warps=4)
    assert (code.spills, code.stack_bytes) == (0, 0)
    assert code.loads["128"] == 8
    assert code.stores["128"] == 6
    assert code.registers <= 64
