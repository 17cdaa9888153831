"""Compiles Triton kernels for GPUs that are not here, and reads the machine code.

What a GPU would be made to do (the width of every load, registers, spills) can be asserted on a machine without one:
Triton compiles offline, and ships the disassembler. This says nothing about speed.
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


class Facts(NamedTuple):
    """What the machine code of one kernel does: counts of instructions a thread executes or may execute."""

    registers: int
    stack_bytes: int
    loads: Counter[str]  # global loads by width: "128", "64", "32", "16", "8"
    stores: Counter[str]
    spills: int  # loads and stores of local memory


def compiled(
    kernel: Any, arguments: Mapping[str, str | int | bool], capability: int, warps: int, registers: int | None = None
) -> Facts:
    """Compiles `kernel` for compute capability `capability` (80: sm_80) and reads what came out.

    `arguments` gives each parameter a Triton type ("*bf16", "fp32", "i64"; "none" for an absent tensor), or the value
    of a constant. Pointers are taken as aligned to 16 bytes, as torch's allocations are.
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


def _read(usage: str, sass: str) -> Facts:
    registers, stack = (re.search(rf"{name}:(\d+)", usage) for name in ("REG", "STACK"))
    assert registers is not None, usage
    assert stack is not None, usage
    opcodes = re.findall(r"\b((?:LDG|STG|LDL|STL)(?:\.\w+)*)", sass)
    return Facts(
        int(registers.group(1)),
        int(stack.group(1)),
        Counter(_width(o) for o in opcodes if o.startswith("LDG")),
        Counter(_width(o) for o in opcodes if o.startswith("STG")),
        sum(o.startswith(("LDL", "STL")) for o in opcodes),
    )
