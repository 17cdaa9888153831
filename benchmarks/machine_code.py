"""Compiles Triton kernels for GPUs that this machine does not have, and reads their machine code.

Triton compiles without a GPU and ships a disassembler, so a test can assert registers, spills and the width of every load
on any machine. This says nothing about speed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)  # A100, H100, B200
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class MachineCode(NamedTuple):
    """What one kernel compiled to. Counts are of instructions in the code, which a thread may execute more than once."""

    registers: int
    stack_bytes: int  # local memory of a thread
    loads: Counter[str]  # global loads by width: "128", "64", "32", "16", "8"
    stores: Counter[str]
    spills: int  # loads and stores of local memory


def compile_kernel(
    kernel: Any, arguments: Mapping[str, str | int | bool], capability: int, warps: int, registers: int | None = None
) -> MachineCode:
    """Compiles `kernel` for compute capability `capability` (80: sm_80) and reads the result.

    `arguments` gives each parameter a Triton type ("*bf16", "fp32", "i64"; "none" for an absent tensor) or the value of a
    constant. Pointers count as aligned to 16 bytes, as torch's allocations are. `registers` is the assembler's ceiling.
    """
    names = list(kernel.arg_names)
    constants = {n: None if v == "none" else v for n, v in arguments.items() if not isinstance(v, str) or v == "none"}
    signature = {n: "constexpr" if n in constants else arguments[n] for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if str(signature[n]).startswith("*")}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    built = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "maxnreg": registers}
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        return _read(_dump(cubin, "-res-usage"), _dump(cubin, "-sass"))


def _dump(cubin: Path, what: str) -> str:
    done = subprocess.run([str(BIN / "cuobjdump"), what, str(cubin)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _width(opcode: str) -> str:
    """LDG.E.128.CONSTANT -> 128; LDG.E.U16 -> 16; LDG.E -> 32."""
    width = re.search(r"\.[US]?(8|16|64|128|256)\b", opcode)
    return width.group(1) if width else "32"


def _read(usage: str, sass: str) -> MachineCode:
    registers, stack = (re.search(rf"{name}:(\d+)", usage) for name in ("REG", "STACK"))
    assert registers is not None, usage
    assert stack is not None, usage
    opcodes = re.findall(r"\b((?:LDG|STG|LDL|STL)(?:\.\w+)*)", sass)
    return MachineCode(
        int(registers.group(1)),
        int(stack.group(1)),
        Counter(_width(o) for o in opcodes if o.startswith("LDG")),
        Counter(_width(o) for o in opcodes if o.startswith("STG")),
        sum(o.startswith(("LDL", "STL")) for o in opcodes),
    )
