"""A rank stands still where no collective is given up, as in the replay of a CUDA graph: the rank before it says so."""

import os
import threading
from pathlib import Path

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from fastmpl.distributed import stop_agreement
from fastmpl.distributed.parent_process import ParentProcess
from fastmpl.distributed.signals import Stopper
from fastmpl.distributed.stop_agreement import Heard, StopAgreement
from fastmpl.errors import PeerLostError

MINUTES = 300.0  # that a busy machine may take


class Ended:
    """Stands for the end of this process: `code` is its exit code."""

    def __init__(self) -> None:
        self.event, self.code = threading.Event(), -1

    def __call__(self, code: int) -> None:
        self.code = code
        self.event.set()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    made = Ended()
    monkeypatch.setattr(os, "_exit", made)
    for name in ("EVERY", "BEATS", "GRACE", "LONGEST"):
        monkeypatch.setattr(stop_agreement, name, 0.02)
    return made


def watch(store: HashStore, stacks: Path, patience: float) -> StopAgreement:
    """The agreement of rank 0 of two, which hears rank 1 through `store` alone."""
    return StopAgreement(Stopper(), 0, 2, store, ParentProcess(), timeout=MINUTES, stacks=stacks, patience=patience)


def test_a_rank_that_stands_still_is_named_and_the_others_end(
    ended: Ended, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = HashStore()
    store.add("beat/1", 9)
    store.set("place/1", "step 7 at step_graph.py:__call__:118")
    with watch(store, tmp_path / "stacks", patience=0.1):
        assert ended.event.wait(MINUTES)
    assert ended.code == PeerLostError.exit_code
    said = capfd.readouterr().err
    assert "Rank 1 no longer answers (last seen: rank 1 in step 7 at step_graph.py:__call__:118)." in said
    assert (tmp_path / "stacks/rank-0.txt").is_file()


def test_a_rank_that_beats_or_has_left_is_not_given_up(tmp_path: Path) -> None:
    """At these times of a clock of its own."""
    store = HashStore()
    agreement = watch(store, tmp_path, patience=10.0)
    heard = agreement._listen(Heard(-1, 0.0), 0.0)
    for now in (9.0, 18.0):
        store.add("beat/1", 1)
        heard = agreement._listen(heard, now)
    assert heard == Heard(2, 18.0)
    assert agreement._listen(heard, 27.0) == heard
    assert not store.check(["fault"])
    store.set("left/1", "")
    agreement._listen(heard, 90.0)
    assert not store.check(["fault"])
    store.delete_key("left/1")
    agreement._listen(heard, 90.0)
    assert store.check(["fault"])
    agreement.store.close()
