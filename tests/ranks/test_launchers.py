"""The launcher that users have: it trains, and whatever is killed, no process stays and the run can be continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket

import pytest

from fastmpl.run import checkpoint
from fastmpl.run.folder import lock_folder

pytest.importorskip("deepspeed", reason="the sharded extra brings its launcher: pip install fastmpl[sharded]")
ROOT = Path(__file__).parents[2]
SECONDS = 150  # for what takes 15 on a quiet machine


@contextmanager
def launch(folder: Path, *options: str, port: int = 29500, restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """`deepspeed --num_gpus 2 launch/train.py launch/configs/digits.toml` with a run of `folder`."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(port)]
    if restarts:
        launcher = [
            sys.executable,
            "launch/restart.py",
            str(restarts),
            str(Path(sys.executable).with_name("deepspeed")),
            "--num_gpus",
            "2",
        ]
    script = ["launch/train.py", "launch/configs/digits.toml", "--run.output", str(folder), "--run.name", "two"]
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [*launcher, *script, *options],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        for number in running(folder):
            os.kill(number, signal.SIGKILL)
        process.kill()


def running(folder: Path) -> dict[int, str]:
    """The processes whose command names that folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in command:
            found[int(path.parent.name)] = command
    return found


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_deepspeed_trains_beside_a_run_that_has_its_port(tmp_path: Path) -> None:
    with closing(socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with launch(tmp_path, "--run.steps", "20", port=other.getsockname()[1]) as process:
            output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert json.loads((tmp_path / "two/STATUS.json").read_text())["state"] == "done"
    assert json.loads((tmp_path / "two/checkpoints/step-20/manifest.json").read_text())["ranks"] == 2
    assert not running(tmp_path)


@pytest.mark.parametrize(
    ("what", "by"),
    [
        ("launcher", "KILL"),
        pytest.param("launcher", "TERM", marks=pytest.mark.slow),
        pytest.param("command", "KILL", marks=pytest.mark.slow),
        ("command", "TERM"),
    ],
)
def test_ranks_save_and_end_after_what_started_them(what: str, by: str, tmp_path: Path) -> None:
    with launch(tmp_path, "--run.steps", "100000") as process:
        wait_for((tmp_path / "two/metrics.jsonl").is_file)
        launchers = [pid for pid, command in running(tmp_path).items() if "launcher.launch" in command]
        os.kill(launchers[0] if what == "launcher" else process.pid, signal.Signals[f"SIG{by}"])
        wait_for(lambda: not any("launch/train.py" in c for c in running(tmp_path).values()), 30)
    status = json.loads((tmp_path / "two/STATUS.json").read_text())
    assert status["state"] == "interrupted"
    found = checkpoint.read_newest(tmp_path / "two/checkpoints", pytest.fail)
    assert found is not None and found.step == status["step"]


@pytest.mark.slow
def test_a_mistake_is_one_sentence_and_its_code_on_any_number_of_ranks(tmp_path: Path) -> None:
    with launch(tmp_path, "--student.lr", "fast") as process:
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, output
    assert output.count("Config: student.lr") == 1
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_folder_in_use_is_said_once_and_nobody_waits_for_the_first_rank(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "two"), launch(tmp_path) as process:
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 5, output
    assert output.count(f"in use by process {os.getpid()}") == 1
    assert "Traceback" not in output


@pytest.mark.slow
def test_ranks_that_were_killed_start_again_together_and_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    """`python launch/restart.py 2 deepspeed ...`: SIGKILL to one rank ends the group, and a new one continues."""
    small = ["--run.steps", "300", "--run.checkpoint_every", "20", "--run.evaluate_every", "300"]
    with launch(tmp_path / "killed", *small, restarts=2) as process:
        wait_for(lambda: bool(checkpoint.steps(tmp_path / "killed/two/checkpoints")))
        ranks = [
            pid
            for pid, line in running(tmp_path / "killed").items()
            if "launch/train.py" in line and "deepspeed" not in line
        ]
        os.kill(max(ranks), signal.SIGKILL)
        output, _ = process.communicate(timeout=2 * SECONDS)
    assert process.returncode == 0, output
    assert "it starts again in" in output
    with launch(tmp_path / "whole", *small) as process:
        process.communicate(timeout=SECONDS)
    found, expected = (checkpoint.read(tmp_path / f / "two/checkpoints/step-300") for f in ("killed", "whole"))
    assert all((found.tensors[name] == value).all() for name, value in expected.tensors.items())
    assert not running(tmp_path)
