"""Calls every kernel once on small inputs: `python -m benchmarks.gpu.every_kernel`, for a checker to watch."""

import argparse
from pathlib import Path

import torch

from benchmarks.gpu.cases import Setting
from benchmarks.gpu.operations import LAYOUTS, OPERATIONS, backend_of, make_inputs, run_on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "imitated"), default="cuda")
    setting = Setting(parser.parse_args().device, Path())
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
