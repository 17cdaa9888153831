"""What the device can do at best: bytes copied and products multiplied a second. Times are given as shares of these."""

import torch

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.timing import time_calls
from benchmarks.records import Row


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a copy within the device. `size`: bytes; several times the L2."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / time_calls(lambda: target.copy_(source), device, samples=7, calls=3).median


def _measure_copy(setting: Setting) -> Row:
    size = 1 << (24 if setting.is_imitated else 32)
    return {"bytes": size, "bytes_per_second": copy_rate(setting.device, size)}


def _measure_product(setting: Setting, dtype: torch.dtype, tf32: bool) -> Row:
    side = 256 if setting.is_imitated else 8192
    a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        seconds = time_calls(lambda: a @ b, setting.device, samples=5, calls=3).median
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"side": side, "flop_per_second": 2 * side**3 / seconds}


def _measure_transfer(setting: Setting) -> Row:
    size = 1 << (20 if setting.is_imitated else 28)
    source = torch.empty(size, dtype=torch.uint8, pin_memory=not setting.is_imitated)
    target = torch.empty(size, dtype=torch.uint8, device=setting.device)
    seconds = time_calls(lambda: target.copy_(source, non_blocking=True), setting.device, samples=5, calls=3).median
    return {"bytes": size, "bytes_per_second": size / seconds}


def cases(setting: Setting) -> Cases:
    return [
        Case("copy within the device", lambda: _measure_copy(setting)),
        Case("copy from pinned memory", lambda: _measure_transfer(setting)),
        Case("matrix product, bf16", lambda: _measure_product(setting, torch.bfloat16, tf32=False)),
        Case("matrix product, float32 as TF32", lambda: _measure_product(setting, torch.float32, tf32=True)),
        Case("matrix product, float32", lambda: _measure_product(setting, torch.float32, tf32=False)),
    ]
