"""A wheel runs on machines that did not build it: it imports from any folder and chooses the instruction set there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastmpl_kernels import library

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        bool(os.environ.get("FASTMPL_NO_NATIVE")),
        reason="FASTMPL_NO_NATIVE is set: unset it and build with a C++ compiler",
    ),
]

# Prints every kernel's results, as the wheel computes them. It runs as `python -I -S`, so that neither the repository nor
# an editable installation is on its path.
PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
from fastmpl_kernels import dispatch, library
from fastmpl_kernels.batch_norm_act import batch_norm_act
from fastmpl_kernels.sgd_ema import global_norm
from fastmpl_kernels.student_objective import student_objective
assert library.__file__.startswith(sys.argv[1]), library.__file__
assert library.available()
dispatch.set_backend("native")
torch.set_num_threads(1)
torch.manual_seed(0)
results = []
for dtype in (torch.float32, torch.bfloat16):
    x = torch.randn(8, 24, 5, 5).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = batch_norm_act(x, torch.rand(24) + 0.5, torch.randn(24), activation="silu")
    z = torch.randn(16, 100).to(dtype).requires_grad_()
    loss = student_objective(torch.randn(16, 100).to(dtype), z, label_smoothing=0.1, temperature=0.7).loss
    results += [y.detach(), *torch.autograd.grad(y, x, torch.randn_like(y)), loss.detach(), *torch.autograd.grad(loss, z)]
results.append(global_norm([torch.randn(5000)]))
torch.save(results, sys.argv[3])
"""
SETS = {"x86-64-v4": "avx512f", "x86-64-v3": "avx2", "x86-64": "sse2"}  # and a flag that says the processor has it


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a clean copy, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["-C", f"build-dir={folder / 'build'}", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=600)
    (built,) = folder.glob("fastmpl-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Native libraries built for a single instruction set, one for each that this processor has."""
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    found = {}
    for name in (name for name, flag in SETS.items() if flag in line.split()):
        folder = tmp_path_factory.mktemp(name)
        cmake = [sys.executable, "-m", "cmake"] if shutil.which("cmake") is None else ["cmake"]
        subprocess.run(
            [*cmake, "-S", str(ROOT), "-B", str(folder), f"-DFASTMPL_INSTRUCTION_SET={name}"],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        subprocess.run([*cmake, "--build", str(folder), "-j", "2"], check=True, capture_output=True, timeout=400)
        found[name] = folder / library.NAME
    return found


def results(wheel: Path, forced: Path | None = None) -> list[Tensor]:
    """What the wheel's package computes, with its own library or with one of a single instruction set."""
    saved = wheel / "results.pt"
    environment = {name: value for name, value in os.environ.items() if name != library.PATH_VARIABLE}
    if forced is not None:
        environment[library.PATH_VARIABLE] = str(forced)
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(wheel), str(Path(torch.__file__).parents[1]), str(saved)]
    subprocess.run(command, check=True, env=environment, cwd=wheel, timeout=120)
    found: list[Tensor] = torch.load(saved)
    return found


def test_the_wheel_computes_on_its_own_what_every_instruction_set_computes(
    wheel: Path, libraries: dict[str, Path]
) -> None:
    """The wheel equals the library of the processor's best set bit for bit, and the others within rounding."""
    own = results(wheel)
    by_set = {name: results(wheel, path) for name, path in libraries.items()}
    best, *others = by_set
    assert all(map(torch.equal, own, by_set[best]))
    for name in others:
        for mine, theirs in zip(own, by_set[name], strict=True):
            tolerance = 2**-7 if mine.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    assert not others or not all(map(torch.equal, own, by_set[others[-1]]))  # so the first comparison means something


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is missing: install binutils")
def test_the_wheels_kernels_are_there_for_several_instruction_sets(wheel: Path) -> None:
    """A wheel has no names of clones any more; 512- and 256-bit registers and the functions that choose remain."""
    path = str(wheel / "fastmpl_kernels" / library.NAME)
    code = subprocess.run(["objdump", "-d", path], check=True, capture_output=True, text=True).stdout
    chosen = subprocess.run(["objdump", "-R", path], check=True, capture_output=True, text=True).stdout
    assert "%zmm" in code
    assert "%ymm" in code
    assert "IRELATIV" in chosen
