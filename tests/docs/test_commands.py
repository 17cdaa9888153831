"""Every command of README.md and docs/*.md runs as it is written, or its block says what it needs.

A block ```bash is run, page by page and in its order, in a folder that holds what the page speaks of; training is
shortened in steps alone, and a block of the README is not run again for another page. A block ```toml whose first line is
`# NAME.toml` is that file. A block under `<!-- needs: WHAT -->` is not run: it needs a GPU, a cluster, or data that cannot
be shipped.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmpl.config import load
from tests.pictures import COLOURS, fill

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_TEST = {"reduced_mpl.md"}  # tests/docs/test_reduced_page.py runs it
BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
COMMAND = re.compile(r"(fastmpl|trtexec|deepspeed|torchrun|sbatch|make|python -m benchmarks[.\w]*) ")
SHORT = {"run.steps": 4, "run.evaluate_every": 4, "data.batch_unlabelled": 16}
PYTHON = {"README.md": ('digits.toml")', f'digits.toml", {SHORT})')}


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """What each block of a language needs, empty where it is run, and its text."""
    found = BLOCK.finditer(page.read_text())
    return [(block["needs"] or "", block["text"]) for block in found if block["language"] == language]


def without_remarks(text: str) -> str:
    """The lines of a shell block, without what stands after a # sign."""
    return "\n".join(line.split(" #")[0].rstrip() for line in text.splitlines())


def commands(page: Path) -> list[list[str]]:
    """The commands of a page that are run, in order."""
    readmes = "" if page.name == "README.md" else without_remarks((ROOT / "README.md").read_text())
    texts = [without_remarks(text) for needs, text in blocks(page, "bash") if not needs]
    lines = "\n".join(text for text in texts if text not in readmes).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.split("#")[0].strip()]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def furnish(folder: Path, page: Path) -> None:
    """What a page speaks of: the configurations, a folder of pictures, one more picture, and perhaps weights."""
    (folder / "launch").symlink_to(ROOT / "launch")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        fill(folder / "pictures" / "labelled" / name, rng, colour, 12)
        fill(folder / "pictures" / "test" / name, rng, colour, 12)
    fill(folder / "pictures" / "unlabelled", rng, (120, 120, 120), 24)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    for _, text in blocks(page, "toml"):
        if name := re.match(r"# (\w+\.toml)\n", text):
            (folder / name[1]).write_text(text)
    if "weights.safetensors" in page.read_text():
        write_weights(folder / "weights.safetensors")


def write_weights(file: Path) -> None:
    """Weights of a network of timm, as a user may have fetched them."""
    import safetensors.torch  # here, because most pages need neither
    import timm

    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), file)


def assert_runs(command: list[str], folder: Path) -> None:
    """A make target is looked up, the shell's own words are left out, and training is shortened in steps."""
    if command[0] in ("source", "pip", "cd"):
        return
    if command[0] == "make":
        done = run(["make", "--dry-run", "--directory", str(ROOT), *command[1:]], folder)
        assert done.returncode == 0, done.stderr
        return
    assert command[0] == "fastmpl", command
    trains = command[1] in ("train", "ablate", "analyse") and "--help" not in command
    short = [word for key, value in SHORT.items() for word in (f"--{key}", str(value))] if trains else []
    done = run([sys.executable, "-m", *command, *short], folder)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OWN_TEST], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_its_order(page: Path, tmp_path: Path) -> None:
    if not commands(page):
        return
    furnish(tmp_path, page)
    for command in commands(page):
        assert_runs(command, tmp_path)
    for needs, program in blocks(page, "python"):
        if page.name not in PYTHON and not needs:
            done = run([sys.executable, "-c", program], tmp_path)
            assert done.returncode == 0, done.stderr


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    (_, program), (old, new) = *blocks(ROOT / "README.md", "python"), PYTHON["README.md"]
    assert old in program
    done = run([sys.executable, "-c", program.replace(old, new)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.splitlines()[-1]) <= 1


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OWN_TEST], ids=lambda page: page.name)
def test_every_command_of_a_page_runs_or_says_what_it_needs(page: Path) -> None:
    text = page.read_text()
    known = "\n".join(block["text"] for block in BLOCK.finditer(text) if block["language"] == "bash")
    loose = [
        line.strip() for line in text.splitlines() if COMMAND.match(line.strip()) and line.startswith(("    ", "\t"))
    ]
    fenced = [block["text"] for block in BLOCK.finditer(text) if block["language"] != "bash"]
    loose += [line for part in fenced for line in part.splitlines() if COMMAND.match(line.strip())]
    assert [line for line in loose if line not in known] == []


NAMED = [(page.name, text) for page in PAGES for _, text in blocks(page, "toml") if re.match(r"# \w+\.toml\n", text)]


@pytest.mark.parametrize(("name", "text"), NAMED, ids=[f"{name} {text.split()[1]}" for name, text in NAMED])
def test_a_configuration_of_a_page_has_keys_that_there_are_and_go_together(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(text)
    assert load(tmp_path / "config.toml").run.name == text.split()[1].removesuffix(".toml")


def test_a_page_has_commands_where_a_reader_expects_them() -> None:
    counts = {page.name: len(commands(page)) for page in PAGES}
    assert counts["README.md"] >= 8
    assert all(counts[name] for name in ("start.md", "noisy_labels.md", "choose_a_method.md", "reliability.md"))
