"""Batch norm and the optimiser compile for GPUs that this machine does not have, without spills, with 128-bit accesses."""

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from benchmarks.machine_code import ARCHITECTURES, compile_kernel
from fastmpl_kernels.batch_norm_act import triton_impl as batch_norm
from fastmpl_kernels.sgd_ema import triton_impl as optimiser

TYPES = {"fp32": 4, "bf16": 2}
CHANNELS = 2048
RESIDUAL = {"ACT": 2, "RESIDUAL": True}


def batch_norm_kernel(phase: str, dtype: str) -> tuple[Any, dict[str, str], dict[str, Any]]:
    rows, columns = batch_norm.tile(CHANNELS, TYPES[dtype])
    shape = {"C": CHANNELS, "R": rows, "K": columns}
    x, table, sums = f"*{dtype}", "*fp32", "*fp64"
    if phase == "sums":
        signature = {"x_at": x, "out": sums, "M": "i32", "rows_per_part": "i32"}
        return batch_norm._sums_kernel, signature, shape
    if phase == "forward":
        views = {"x_at": x, "residual_at": x, "y_at": x}
        signature = {**views, "moments": table, "table": table, "M": "i32", "slope": "fp32"}
        return batch_norm._forward_kernel, signature, {**shape, **RESIDUAL}
    if phase == "gradient_sums":
        views = {"dy_at": x, "x_at": x, "residual_at": x}
        tables = {"moments": table, "weight": table, "bias": table, "out": sums}
        signature = {**views, **tables, "M": "i32", "rows_per_part": "i32", "slope": "fp32"}
        return batch_norm._gradient_sums_kernel, signature, {**shape, **RESIDUAL}
    views = dict.fromkeys(("in_at", "x_at", "residual_at", "residual_in_at", "out_at", "residual_out_at"), x)
    signature = {**views, "moments": table, "table": table, "M": "i32", "slope": "fp32"}
    return batch_norm._derivative_kernel, signature, {**shape, **RESIDUAL, "TANGENT": phase == "tangent"}


# Loads and stores of 128 bits a thread: two for each tensor that the phase reads or writes.
WIDE = {"sums": (2, 0), "forward": (4, 2), "gradient_sums": (6, 0), "gradient": (6, 4), "tangent": (8, 2)}


@pytest.mark.parametrize(("dtype", "architecture"), [*(("bf16", a) for a in ARCHITECTURES), ("fp32", 90)])
@pytest.mark.parametrize("phase", WIDE)
def test_batch_norm_reads_and_writes_128_bits_wide(phase: str, dtype: str, architecture: int) -> None:
    kernel, signature, constants = batch_norm_kernel(phase, dtype)
    code = compile_kernel(kernel, {**signature, **constants}, architecture, warps=4)
    loads, stores = WIDE[phase]
    assert (code.spills, code.stack_bytes) == (0, 0)
    assert code.loads["128"] == loads
    assert code.stores["128"] == stores
    assert code.registers <= 128  # 16 warps a multiprocessor at least


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
