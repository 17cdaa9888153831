"""How a rank leaves its group: together with the others, or without a word to them if it failed."""

import threading

import pytest
import torch.distributed as dist

from fastmpl.distributed import process_group
from fastmpl.distributed.process_group import leave_group


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(dist, "destroy_process_group", lambda: found.append("destroyed"))
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", lambda: found.append("aborted"))
    return found


@pytest.mark.parametrize(
    ("backend", "failed", "does"),
    [
        ("nccl", False, "destroyed"),
        ("nccl", True, "aborted"),
        ("gloo", False, "destroyed"),
        ("gloo", True, "destroyed"),
    ],
)
def test_a_rank_that_failed_asks_no_other_to_end_its_group(
    backend: str, failed: bool, does: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    leave_group(failed=failed)
    assert said == [does]


def test_a_group_that_cannot_be_aborted_does_not_hide_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", goes_on.wait)
    monkeypatch.setattr(process_group, "GRACE", 0.02)
    try:
        leave_group(failed=True)
    finally:
        goes_on.set()
