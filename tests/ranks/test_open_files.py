"""Many ranks get the open files that they need, or are told that the system forbids it."""

import resource
import subprocess
import sys

import pytest

from fastmpl.distributed import open_files
from fastmpl.errors import ConfigError

LIMITED = """
import resource
from fastmpl.distributed.open_files import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
allow_open_files({ranks})
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limit_after(ranks: int) -> str:
    """What a process that may open 256 files, and 4,096 if it asks, may open then."""
    command = [sys.executable, "-c", LIMITED.format(ranks=ranks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def test_the_limit_is_raised_to_what_the_ranks_need() -> None:
    assert limit_after(200) == f"({open_files.OWN + 3 * 200}, 4096)\n"


def test_more_than_the_system_allows_is_one_sentence() -> None:
    assert "2048 ranks need up to 6656 open files each, and this system allows 4096." in limit_after(2048)


def test_a_large_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", None)
    open_files.allow_open_files(10**6)


def test_a_finite_limit_below_the_need_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (600, 600))
    with pytest.raises(ConfigError, match="allows 600"):
        open_files.allow_open_files(64)
