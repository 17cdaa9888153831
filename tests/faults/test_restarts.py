"""A run that was killed starts again and ends as if it had not been; one that a user must change does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastmpl.cli import main
from fastmpl.run import checkpoint
from fastmpl.run.folder import read_status
from fastmpl.run.restarts import free_port, newest_step, read_code, supervise
from tests.run.short_runs import CONFIGS, short_config, train_quietly

SECONDS = 200


def ends_with(code: int) -> Sequence[str]:
    return [sys.executable, "-c", f"import sys; sys.exit({code})"]


def attempts(codes: list[int], folder: Path, restarts: int, saves: list[int]) -> tuple[int, int, list[float]]:
    """The exit code, the number of attempts, and the waits between them, of commands that end with `codes`."""
    waits: list[float] = []
    made = 0

    def command(attempt: int) -> Sequence[str]:
        nonlocal made
        made += 1
        for step in saves[:made]:
            (folder / f"checkpoints/step-{step}").mkdir(parents=True, exist_ok=True)
        return ends_with(codes[attempt])

    code = supervise(command, folder, restarts, tell=lambda line: None, wait=waits.append)
    return code, made, waits


def test_a_lost_rank_is_tried_again_with_longer_waits(tmp_path: Path) -> None:
    assert attempts([6, 70, 6, 0], tmp_path, 5, [1, 2, 3, 4]) == (0, 4, [1.0, 2.0, 4.0])


@pytest.mark.parametrize("code", [2, 3, 4, 75, 130])
def test_what_would_end_the_same_way_again_is_not_tried_again(code: int, tmp_path: Path) -> None:
    assert attempts([code, 0], tmp_path, 5, []) == (code, 1, [])


def test_two_failures_without_a_new_checkpoint_are_the_last(tmp_path: Path) -> None:
    assert attempts([6, 6, 6, 6, 0], tmp_path, 9, [5, 5, 5, 5]) == (6, 3, [1.0, 2.0])


def test_the_number_of_restarts_is_kept(tmp_path: Path) -> None:
    assert attempts([6, 6, 6, 0], tmp_path, 2, [1, 2, 3]) == (6, 3, [1.0, 2.0])


def test_the_code_of_a_run_is_read_where_its_launcher_gives_another(tmp_path: Path) -> None:
    (tmp_path / "STATUS.json").write_text('{"state": "failed", "code": 4}')
    assert read_code(tmp_path, 1) == 4
    assert read_code(tmp_path / "nowhere", 1) == 1


@pytest.mark.parametrize("behind", [0, 3600], ids=["one clock", "a file server an hour behind"])
def test_the_code_of_this_attempt_is_taken_whatever_the_clocks_say(behind: int, tmp_path: Path) -> None:
    status = tmp_path / "STATUS.json"
    write = (
        "import os, sys, time; p = sys.argv[1]; open(p + '.tmp', 'w').write('{\"code\": 4}'); "
        f"os.utime(p + '.tmp', (time.time() - {behind},) * 2); os.replace(p + '.tmp', p); sys.exit(1)"
    )
    commands = [[sys.executable, "-c", write, str(status)]] * 3
    assert supervise(commands.__getitem__, tmp_path, 2, tell=lambda line: None, wait=lambda seconds: None) == 4
    # an earlier attempt's words say nothing of one that wrote none
    commands = [ends_with(1)] * 3
    assert supervise(commands.__getitem__, tmp_path, 2, tell=lambda line: None, wait=lambda seconds: None) == 1


def test_ports_are_free_and_change() -> None:
    assert len({free_port() for _ in range(20)}) > 1


def test_a_killed_run_that_starts_again_equals_one_that_was_not_killed(tmp_path: Path) -> None:
    small = [
        "--run.steps",
        "400",
        "--run.checkpoint_every",
        "20",
        "--run.evaluate_every",
        "400",
        "--run.log_every",
        "50",
    ]
    command = [sys.executable, "-m", "fastmpl", "train", str(CONFIGS / "digits.toml"), *small, "--run.name", "small"]
    options = ["--data.batch_unlabelled", "32", "--run.output"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *options, str(tmp_path / "killed"), "--restarts", "2"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + SECONDS
    while newest_step(tmp_path / "killed/small") < 40:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.kill(read_status(tmp_path / "killed/small")["process"], signal.SIGKILL)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert "The run ended with exit code 137 and is saved at step" in said
    subprocess.run([*command, *options, str(tmp_path / "whole")], env=environment, check=True, timeout=SECONDS)
    found, expected = (checkpoint.read(tmp_path / f / "small/checkpoints/step-400") for f in ("killed", "whole"))
    assert all((found.tensors[name] == value).all() for name, value in expected.tensors.items())


@pytest.mark.parametrize("force", [False, True])
def test_other_settings_are_forced_where_the_networks_stay_the_same(
    force: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_quietly(short_config(tmp_path))
    options = ["--run.output", str(tmp_path), "--run.name", "small", "--run.steps", "30", "--run.log_every", "6"]
    options += [
        "--run.evaluate_every",
        "10",
        "--run.checkpoint_every",
        "100",
        "--run.keep",
        "9",
        "--student.lr",
        "0.02",
    ]
    options += [
        "--data.batch_unlabelled",
        "32",
        "--teacher.warmup",
        "4",
        "--student.warmup",
        "4",
        "--feedback.every",
        "2",
    ]
    code = main(["train", str(CONFIGS / "digits.toml"), *options, *(["--force"] if force else [])])
    said = capsys.readouterr()
    assert code == (0 if force else 2)
    if force:
        assert "Continuing with other settings (" in said.out
        assert "student.lr from" in said.out
        assert "feedback.every from 1 to 2" in said.out
    else:
        assert "--force to continue with them" in said.err


def test_settings_of_the_data_are_never_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_quietly(short_config(tmp_path))
    options = ["--run.output", str(tmp_path), "--run.name", "small", "--data.labels", "40", "--force"]
    assert main(["train", str(CONFIGS / "digits.toml"), *options]) == 2
    assert "--force" not in capsys.readouterr().err
