"""Calls every kernel once on small inputs: `python -m benchmarks.gpu.every_kernel`, for a checker to watch.

With `--share I N` it makes the checks of one of N shares of the kernels instead, for what they compile: Triton keeps that
on the disk, where the checks themselves find it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.cases import Setting
from benchmarks.gpu.kernel_checks import check_accuracy
from benchmarks.gpu.operations import LAYOUTS, OPERATIONS, backend_of, make_inputs, run_on


def _check_share(number: int, shares: int, setting: Setting) -> None:
    pairs = [(operation, dtype) for operation in OPERATIONS for dtype in operation.types][number::shares]
    for operation, dtype in pairs:
        check_accuracy(operation, dtype, setting)
    print(f"{len(pairs)} pairs of an operation and a type")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "imitated"), default="cuda")
    parser.add_argument("--share", nargs=2, type=int)
    asked = parser.parse_args(arguments)
    setting = Setting(asked.device, Path())
    if asked.share:
        number, shares = asked.share
        _check_share(number, shares, setting)
        return
    calls = 0
    for operation in OPERATIONS:
        for dtype in operation.types:
            for layout in LAYOUTS:
                inputs = make_inputs(operation, 5, 17, dtype, setting.device, layout)
                run_on(operation, backend_of(setting.device), inputs)
                calls += 1
    if not setting.is_imitated:
        torch.cuda.synchronize()
    print(f"{calls} calls of {len(OPERATIONS)} operations")


if __name__ == "__main__":
    main()
