"""Every program and command of docs/reduced_mpl.md runs, in its order; training is shortened in steps alone."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmpl.data.errors import DataError
from fastmpl.data.sources import fashion_mnist
from fastmpl.data.stores.store import open_store

ROOT = Path(__file__).parents[2]
TRAINING = "--run.steps 4 --run.evaluate_every 4 --run.checkpoint_every 4"
SHORT = {
    "fastmpl train": TRAINING,
    "fastmpl ablate": "--help",  # eight runs; tests of its own run it on digits
    "fastmpl distill": "",
    "python -m benchmarks.experiments.large_teacher": "--steps 4",
    "python -m benchmarks.experiments.biased_teacher": "--help",  # it was run whole for its record
}


def commands() -> list[str]:
    lines = (ROOT / "docs" / "reduced_mpl.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith(("    fastmpl ", "    python "))]


def shortened(command: str) -> list[str]:
    start = next(start for start in SHORT if command.startswith(start))
    words = shlex.split(f"{command} {SHORT[start]}")
    return [sys.executable, *(words[1:] if words[0] == "python" else ["-m", *words])]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_practical_case_runs_as_it_is_written(tmp_path: Path) -> None:
    try:
        fashion_mnist("")
    except DataError:
        pytest.skip("needs Fashion-MNIST: Debian's package dataset-fashion-mnist")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    assert len(commands()) >= 10
    for command in commands():
        assert_runs(shortened(command), tmp_path)
    for name in ("fashion_mnist_reduced", "distillation", "calibrator", "feedback_alone", "supervised"):
        assert (tmp_path / "runs" / name / "student.safetensors").is_file()


LARGE_MODEL = """
import numpy as np
from PIL import Image


def score(picture):
    if picture.name == "odd.jpg":  # no picture: a service answers nevertheless
        return {"dog": 0.5, "cat": 0.5}
    red, _, blue = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3).mean(0)
    cat = 1 / (1 + np.exp((blue - red) / 20))
    return {"dog": 1 - cat, "cat": cat}
"""


def blocks(language: str) -> list[str]:
    """The blocks of the page in a language, in order."""
    page = (ROOT / "docs" / "reduced_mpl.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def furnish(folder: Path) -> None:
    """The folder that the page describes, with reddish cats and bluish dogs; one file is no picture."""
    rng = np.random.default_rng(0)
    for part, count in (("labelled", 10), ("unlabelled", 20), ("test", 5)):
        for name, colour in (("cat", (200, 60, 60)), ("dog", (60, 60, 200))):
            below = folder / "pictures" / part / (name if part != "unlabelled" else "")
            below.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = np.clip(rng.normal(0, 30, (40, 40, 3)) + colour, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(below / f"{name} {number}.jpg")
    whole = (folder / "pictures" / "unlabelled" / "cat 0.jpg").read_bytes()
    (folder / "pictures" / "unlabelled" / "odd.jpg").write_bytes(whole[:300])
    (folder / "photo.jpg").write_bytes(whole)
    (folder / "my_model.py").write_text(LARGE_MODEL)


def assert_runs(words: list[str], folder: Path) -> str:
    """What a command prints; it must end well."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_the_case_of_a_folder_runs_as_it_is_written(tmp_path: Path) -> None:
    furnish(tmp_path)
    (program,), (toml,) = blocks("python"), blocks("toml")
    assert_runs([sys.executable, "-c", program], tmp_path)
    (tmp_path / "pictures_reduced.toml").write_text(toml)
    said = []
    for line in "".join(blocks("bash")).splitlines():
        words = shlex.split(line)
        short = TRAINING.split() if words[1] == "train" else []
        said.append(assert_runs([sys.executable, "-m", *words, *short], tmp_path))
    assert "10 rows of scores.csv are of no training image" in said[0]
    assert "1 rows of scores.csv are of files that were left out" in said[0]
    store = open_store(tmp_path / "runs" / "stores" / "pictures")
    assert store.header.class_names == ("cat", "dog")  # in the file dogs come first
    number, sure = store.top(np.arange(60))
    assert number.tolist() == [*[0] * 10, *[1] * 10, *[0] * 20, *[1] * 20]
    assert (sure > 0.9).all()
    for name in ("reduced", "distillation", "supervised"):
        assert (tmp_path / "runs" / f"pictures_{name}" / "student.safetensors").is_file()
