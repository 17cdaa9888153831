"""What the documentation says is there, is: every command runs, every path exists, every number is a record's."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.records import RESULTS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)
SHORT = {"run.steps": 4, "run.evaluate_every": 4, "data.batch_unlabelled": 16}


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README.read_text()) if kind == language]


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.split("#")[0].strip()]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_readmes_commands_run_in_its_order(tmp_path: Path) -> None:
    """Each as written, but for `fastmpl train`'s number of steps."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    ran = 0
    for command in commands():
        if command[0] == "make":
            assert run(["make", "--dry-run", "--directory", str(ROOT), *command[1:]], tmp_path).returncode == 0
            continue
        assert command[0] == "fastmpl", command
        trains = command[1] == "train" and "--help" not in command
        short = [word for key, value in SHORT.items() for word in (f"--{key}", str(value))] if trains else []
        done = run([sys.executable, "-m", *command, *short], tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
        ran += 1
    assert ran > 3
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    assert len(blocks("python")) == 1
    program = blocks("python")[0].replace('digits.toml")', f'digits.toml", {SHORT})')
    assert "run.steps" in program
    done = run([sys.executable, "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.splitlines()[-1]) <= 1


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_path_of_the_tree_exists() -> None:
    tree = README.read_text().split("## The tree")[1].split("```")[1]
    parents: list[str] = []
    for line in tree.strip().splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        assert (ROOT / "/".join(parents)).exists(), line


def test_every_table_is_what_its_record_says() -> None:
    assert tables.main(["--check"]) == 0


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_was_made_by_a_command_of_the_repository(path: Path) -> None:
    command = tables.load(path.stem).command
    module = re.search(r"-m (benchmarks\.[\w.]+)", command)
    assert module, command
    assert (ROOT / (module[1].replace(".", "/") + ".py")).is_file()
