"""Tab completes verbs, options, keys and values: asked of bash itself, with the program that `completion` prints."""

import shlex
import shutil
import subprocess

import pytest

from fastmpl import cli
from fastmpl.config.examples import find_example
from fastmpl.config.load import KEYS


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", "bash"]) == 0
    return capsys.readouterr().out


def complete(program: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    line = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _fastmpl; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", program + line], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("tra",), ["train"]),
        (("train", "digits.toml", "--method.na"), ["--method.name"]),
        (("train", "digits.toml", "--method.name", "mp"), ["mpl"]),
        (("train", "digits.toml", "--data.flip", ""), ["true", "false"]),
        (("train", "digits.toml", "--dry"), ["--dry-run"]),
        (("export", "runs/digits", "--to", "on"), ["onnx"]),
        (("predict", "runs/digits", "--method.na"), []),  # a verb without a configuration has no such option
        (("train", "dig"), []),  # bash completes files itself
    ],
)
def test_bash_is_offered(program: str, words: tuple[str, ...], offered: list[str]) -> None:
    assert complete(program, "fastmpl", *words) == offered


def test_every_key_and_verb_is_offered(program: str) -> None:
    assert complete(program, "fastmpl", "") == list(cli.VERBS)
    assert {f"--{key}" for key in KEYS} <= set(complete(program, "fastmpl", "train", "--"))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    program = capsys.readouterr().out
    assert "method.name" in program
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=program, text=True, check=True)


@pytest.mark.parametrize("option", ["--dry-run", "--dry_run"])
def test_options_are_read_as_they_are_typed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(find_example("digits")), option, "--run.evaluate-every", "7"]) == 0
    assert "evaluate_every = 7" in capsys.readouterr().out
