"""What the machine has: versions, sizes, and which optional packages and tools are missing."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import torch

from benchmarks.gpu.cases import Case, Cases, MissingError, Setting
from benchmarks.records import Row

# package -> the rows and features that need it
OPTIONAL: Final = {
    "triton": "the fused kernels; references serve without it",
    "pydantic": "configurations: every row of a whole step",
    "tomli-w": "runs: they save their configuration",
    "rich": "runs: their progress",
    "safetensors": "runs: their checkpoints",
    "timm": "ResNet-50",
    "jaxtyping": "everything but the kernels' Triton code",
    "nvidia-dali-cuda130": "pictures that are decoded at every step",
    "deepspeed": "the ZeRO rows",
    "tyro": "the command line",
    "pytest": "the tests under the marker `gpu`",
}
TOOLS: Final = ("nvidia-smi", "compute-sanitizer", "nvcc", "c++")


def _describe_torch() -> Row:
    cuda = torch.version.cuda or "none"
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else "none"  # type: ignore[no-untyped-call]
    nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    version_of_nccl = "none"
    if nccl and torch.cuda.is_available():
        version_of_nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": cuda,
        "cudnn": str(cudnn),
        "nccl": version_of_nccl,
        "cores": len(os.sched_getaffinity(0)),
    }


def _describe_device(setting: Setting) -> Row:
    if setting.is_imitated:
        raise MissingError("needs a GPU")
    facts = torch.cuda.get_device_properties(setting.device)
    free, total = torch.cuda.mem_get_info(setting.device)
    return {
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "l2_bytes": facts.L2_cache_size,
        "bytes": total,
        "free_bytes": free,
        "count": torch.cuda.device_count(),
    }


def _describe_package(name: str, use: str) -> Callable[[], Row]:
    def describe() -> Row:
        try:
            return {"version": version(name)}
        except PackageNotFoundError as error:
            raise MissingError(f"not installed; for {use}") from error

    return describe


def _describe_tool(name: str) -> Callable[[], Row]:
    def describe() -> Row:
        path = shutil.which(name)
        if path is None:
            raise MissingError("not on the PATH")
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
        words = [line.strip() for line in done.stdout.splitlines() if any(letter.isdigit() for letter in line)]
        return {"version": words[0] if words else "unknown"}

    return describe


def _describe_native() -> Row:
    from fastmpl_kernels.library import available

    if not available():
        raise MissingError("the C++ kernels are not built; only kernels on a CPU need them")
    return {"built": True}


def cases(setting: Setting) -> Cases:
    return [
        Case("torch", _describe_torch),
        Case("device", lambda: _describe_device(setting)),
        *(Case(f"package {name}", _describe_package(name, use)) for name, use in OPTIONAL.items()),
        *(Case(f"tool {name}", _describe_tool(name)) for name in TOOLS),
        Case("C++ kernels", _describe_native),
    ]
