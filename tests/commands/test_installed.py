"""fastmpl installed from a wheel, in an environment of its own and far from a checkout: the first commands work there.

The environment is empty but for a path to the packages that fastmpl depends on, which are those of the tests. The wheel
is built without its native kernels; tests/kernels/test_wheel.py tests these.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `fastmpl` of an environment into which pip installed the wheel."""
    place = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-C", f"build-dir={place / 'build'}"]
    environment = os.environ | {"FASTMPL_NO_NATIVE": "true"}
    subprocess.run([*build, "--wheel-dir", str(place), str(ROOT)], check=True, env=environment, timeout=200)
    venv.create(place / "environment", with_pip=False)
    (site,) = (place / "environment" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    (wheel,) = place.glob("fastmpl-*.whl")
    # --no-index: whatever the wheel asks for and the tests' environment lacks is an error
    python = str(place / "environment" / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--quiet", "--no-index", str(wheel)], check=True, timeout=200)
    return place / "environment" / "bin" / "fastmpl"


def run(program: Path, folder: Path, *arguments: str, seconds: float = 250) -> str:
    """What the command prints, called in `folder`, without the variables that lead to a checkout."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=own | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_wheel_writes_an_example_and_trains_it(program: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [program.with_name("python"), "-c", "import fastmpl; print(fastmpl.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert str(program.parents[1]) in where
    assert "fastmpl train digits.toml" in run(program, tmp_path, "init", "--example", "digits")
    run(program, tmp_path, "train", "digits.toml", "--run.steps", "4", "--run.evaluate_every", "4")
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


def test_a_wheel_carries_every_example(program: Path, tmp_path: Path) -> None:
    there = {path.name for path in program.parents[1].glob("lib/python*/site-packages/fastmpl/configs/*.toml")}
    assert there == {path.name for path in (ROOT / "launch" / "configs").glob("*.toml")}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demonstration_of_an_installed_wheel_ends_with_two_tables(program: Path, tmp_path: Path) -> None:
    printed = run(program, tmp_path, "demo", seconds=1400)
    assert printed.count("mean ± s.e.") == 2
    assert printed.count("paired 95 % interval") == 2
    assert "gold loss correction" in printed
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
