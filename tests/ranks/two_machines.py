"""Two machines of one: network namespaces that only a virtual cable joins, which can be pulled. Only root can make them."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pytest

CABLE = "lan0"  # the network device of each machine


class Machine(NamedTuple):
    """A network namespace with an address of its own; files and processes are those of the whole machine."""

    name: str
    address: str

    def start(self, command: Sequence[str], **changes: str) -> subprocess.Popen[str]:
        """Starts a command there, in a session of its own. changes: of the environment."""
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            env=environment | {"GLOO_SOCKET_IFNAME": CABLE, "NCCL_SOCKET_IFNAME": CABLE} | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def pull_cable(self) -> None:
        """Nothing arrives any more, and nothing says so."""
        _ip("-n", self.name, "link", "set", CABLE, "down")

    def plug_cable_in(self) -> None:
        _ip("-n", self.name, "link", "set", CABLE, "up")


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines that reach each other; skips the test where they cannot be made. All processes there are killed."""
    found = tuple(Machine(f"mpl{os.getpid()}{end}", f"10.77.0.{number}") for number, end in enumerate("ab", 1))
    first, second = found
    try:
        _make(first, second)
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(found)
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        pytest.skip(f"run as root, with iproute2, to make network namespaces ({said})")
    try:
        yield first, second
    finally:
        _remove(found)


def ends(processes: Mapping[str, subprocess.Popen[str]], seconds: float) -> dict[str, tuple[int, str]]:
    """The exit code and the output of each process; those that do not end are killed, with code -9."""
    found = {}
    for name, process in processes.items():
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        found[name] = (process.returncode, output)
    return found


def _make(first: Machine, second: Machine) -> None:
    for machine in (first, second):
        _ip("netns", "add", machine.name)
    _ip("-n", first.name, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", second.name)
    for machine in (first, second):
        _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", CABLE)
        for device in ("lo", CABLE):
            _ip("-n", machine.name, "link", "set", device, "up")


def _remove(machines: Sequence[Machine]) -> None:
    for machine in machines:
        with suppress(OSError, subprocess.CalledProcessError):
            for number in _ip("netns", "pids", machine.name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
            _ip("netns", "delete", machine.name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
