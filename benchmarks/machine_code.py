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
ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class MachineCode(NamedTuple):
    """What one kernel compiled to. Counts are of instructions in the code, which a thread may execute more than once."""

    registers: int
    stack_bytes: int  # local memory of a thread
    loads: Counter[str]  # global loads by width: "128", "64", "32", "16", "8"
    stores: Counter[str]
    copies: Counter[str]  # asynchronous ones from global to shared memory
    spills: int  # loads and stores of local memory
    in_flight: int  # global loads that the busiest loop has issued when it waits for one of them
    loop_loads: int  # global loads of one trip through that loop, and
    loop_waits: int  # how often the trip then needs the result of a load that it has issued since it last waited


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
    opcodes = re.findall(r"\b((?:LDG|STG|LDL|STL|LDGSTS)(?:\.\w+)*)(?!\w)", sass)
    return MachineCode(
        int(registers.group(1)),
        int(stack.group(1)),
        Counter(_width(o) for o in opcodes if o.split(".")[0] == "LDG"),
        Counter(_width(o) for o in opcodes if o.startswith("STG")),
        Counter(_width(o) for o in opcodes if o.startswith("LDGSTS")),
        sum(o.startswith(("LDL", "STL")) for o in opcodes),
        *_busiest_loop(sass),
    )


class Instruction(NamedTuple):
    address: int
    opcode: str
    registers: list[int]  # as they are written, the destination first


def _instructions(sass: str) -> list[Instruction]:
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?([A-Z][\w.]*)([^;]*);")
    return [
        Instruction(int(address, 16), opcode, [int(r) for r in re.findall(r"\bR(\d+)\b", operands)])
        for address, opcode, operands in line.findall(sass)
    ]


def _loops(sass: str) -> list[tuple[int, int]]:
    """The first and last address of every loop: a branch backwards, but for the endless one that pads the code."""
    branches = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?BRA(?:\.\w+)*\s[^;]*?0x([0-9a-f]+)\s*;", sass)
    found = [(int(target, 16), int(address, 16)) for address, target in branches]
    return [(target, address) for target, address in found if target < address]


def _follow_loads(code: list[Instruction]) -> tuple[int, int, int]:
    """Most loads in flight, loads, and waits of straight code. An instruction waits for a load whose register it names."""
    flying: list[set[int]] = []
    most = loads = waits = 0
    issued = False
    for instruction in code:
        touched = [load for load in flying if load & set(instruction.registers)]
        if touched:
            waits, issued = waits + issued, False
            flying = [load for load in flying if load not in touched]
        if instruction.opcode.split(".")[0] == "LDG":
            first, count = instruction.registers[0], max(1, int(_width(instruction.opcode)) // 32)
            flying.append(set(range(first, first + count)))
            loads, issued, most = loads + 1, True, max(most, len(flying))
    return most, loads, waits


def _follow_copies(sass: str) -> tuple[int, int, int]:
    """The same of asynchronous copies to shared memory (LDGSTS). LDGDEPBAR ends a group, and DEPBAR waits for all groups
    but the newest N."""
    copies, groups = len(re.findall(r"\bLDGSTS\b", sass)), len(re.findall(r"\bLDGDEPBAR\b", sass))
    waits = [int(n, 16) for n in re.findall(r"\bDEPBAR\.LE SB0, 0x([0-9a-f]+)", sass)]
    if not groups or not waits:
        return 0, 0, 0
    return (max(waits) + groups) * copies // groups, copies, len(waits)


def _follow(code: list[Instruction], sass: str, first: int, last: int) -> tuple[int, int, int]:
    direct = _follow_loads([i for i in code if first <= i.address <= last])
    lines = [line for line in sass.splitlines() if (at := re.search(r"/\*([0-9a-f]{4,})\*/", line))
             and first <= int(at.group(1), 16) <= last]  # fmt: skip
    copies = _follow_copies("\n".join(lines))
    return direct[0] + copies[0], direct[1] + copies[1], direct[2] + copies[2]


def _busiest_loop(sass: str) -> tuple[int, int, int]:
    """Loads in flight, loads and waits of the loop with the most loads; of the whole code where no loop loads."""
    code = _instructions(sass)
    loops = [_follow(code, sass, first, last) for first, last in _loops(sass)]
    return max((loop for loop in loops if loop[1]), key=lambda loop: loop[1], default=_follow_loads(code))
