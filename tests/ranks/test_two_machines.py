"""Two machines train together; when one is lost, the other ends with its code, and the same commands continue."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmpl.run import checkpoint
from tests.ranks.two_machines import Machine, ends, two_machines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SECONDS = 240  # for what takes 20 on a quiet machine
TIMEOUT = 20  # system.timeout


def torchrun(number: int, first: Machine, folder: Path) -> list[str]:
    """`torchrun --nnodes 2 ...` on machine `number`."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)),
        *("--nproc-per-node", "1", "--master-addr", first.address, "--master-port", "29500"),
    ]


def deepspeed(number: int, first: Machine, folder: Path) -> list[str]:
    """`deepspeed --no_ssh --node_rank ...` on machine `number`, as a cluster without ssh starts it."""
    hosts = folder / "hostfile"
    hosts.write_text("first slots=1\nsecond slots=1\n")
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh", "--node_rank"),
        *(str(number), "--master_addr", first.address, "--master_port", "29500"),
    ]


Launcher = Callable[[int, Machine, Path], list[str]]


def start(launcher: Launcher, machines: tuple[Machine, Machine], folder: Path) -> dict[str, subprocess.Popen[str]]:
    """Starts the two parts of one run."""
    script = [
        *("launch/train.py", "launch/configs/digits.toml", "--run.output", str(folder), "--run.name", "two"),
        *("--run.steps", "100000", "--run.checkpoint_every", "10", "--run.log_every", "10"),
        *("--run.evaluate_every", "100000", "--system.timeout", str(TIMEOUT)),
    ]
    changes = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return {
        machine.name: machine.start(
            ["env", "-C", str(ROOT), *launcher(number, machines[0], folder), *script],
            CUDA_VISIBLE_DEVICES="",
            **changes,
        )
        for number, machine in enumerate(machines)
    }


def wait_for_checkpoint(folder: Path, after: int, running: dict[str, subprocess.Popen[str]]) -> None:
    until = time.monotonic() + SECONDS
    while max(checkpoint.steps(folder), default=0) <= after:
        if time.monotonic() > until or any(process.poll() is not None for process in running.values()):
            pytest.fail("\n".join(output[-2000:] for _, output in ends(running, 1).values()))
        time.sleep(0.2)


@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_a_machine_that_is_lost_ends_the_run_and_the_same_commands_continue(launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    with two_machines() as machines:
        running = start(launcher, machines, tmp_path)
        wait_for_checkpoint(folder / "checkpoints", 0, running)
        machines[1].pull_cable()
        pulled = time.monotonic()
        ended = ends(running, 6 * TIMEOUT)
        assert time.monotonic() - pulled < 4 * TIMEOUT
        assert all(code not in (0, -signal.SIGKILL) for code, _ in ended.values())  # a launcher's own
        status = json.loads((folder / "STATUS.json").read_text())
        assert (status["state"], status["code"]) == ("failed", 6)
        assert "Rank 1 no longer answers" in status["message"]
        found = checkpoint.read_newest(folder / "checkpoints", pytest.fail)
        assert found is not None and found.ranks == 2

        machines[1].plug_cable_in()
        running = start(launcher, machines, tmp_path)
        wait_for_checkpoint(folder / "checkpoints", found.step, running)
        running[machines[1].name].terminate()  # not the first rank's: it travels over the cable
        ended = ends(running, SECONDS)
        assert any(f"Continuing at step {found.step} of" in output for _, output in ended.values())
    status = json.loads((folder / "STATUS.json").read_text())
    assert status["state"] == "interrupted"
    last = checkpoint.read_newest(folder / "checkpoints", pytest.fail)
    assert last is not None and (last.step, last.ranks) == (status["step"], 2)
