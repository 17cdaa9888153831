"""Compiles a Triton kernel for a GPU that is not here and reads its machine code: registers, spills, width of accesses."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class MachineCode(NamedTuple):
    registers: int
    stack: int
    spills: int  # loads and stores of local memory
    loads: dict[int, int]  # width in bits -> number of global loads
    stores: dict[int, int]


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], check=True, capture_output=True, text=True).stdout


def _widths(assembly: str, name: str) -> dict[int, int]:
    widths: dict[int, int] = {}
    for modifiers in re.findall(rf"\b{name}((?:\.\w+)*)", assembly):
        found = re.search(r"\.(U8|S8|U16|S16|64|128|256)\b", modifiers)
        width = int(found.group(1).lstrip("US")) if found else 32
        widths[width] = widths.get(width, 0) + 1
    return widths


def compiled(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], architecture: int, warps: int = 4
) -> MachineCode:
    """Pointers are taken as aligned to 16 bytes. `constants` are the constexpr arguments."""
    full = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name, kind in signature.items() if kind[0] == "*"
    }
    source = ASTSource(kernel, full, constexprs=constants, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return MachineCode(
        int(found.group(1)),
        int(found.group(2)),
        len(re.findall(r"\b(?:LDL|STL)\b", assembly)),
        _widths(assembly, "LDG"),
        _widths(assembly, "STG"),
    )
