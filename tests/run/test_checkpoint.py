"""A checkpoint is whole or not there, whatever happens while it is written, and runs nothing when it is read."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.errors import StorageError
from fastmpl.run import checkpoint, checkpoint_files
from fastmpl.run.checkpoint import Checkpoint


def make_checkpoint(step: int) -> Checkpoint:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    return Checkpoint(step, {"weight": weight, "count": torch.tensor(step)}, {"best": None})


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    saved = make_checkpoint(3)
    read = checkpoint.read(checkpoint.save(tmp_path, saved))
    assert (read.step, read.facts) == (3, {"best": None})
    assert all(torch.equal(read.tensors[name], value) for name, value in saved.tensors.items())


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


@pytest.mark.parametrize("call", ["mkdir", "write", "fsync", "rename"])
@pytest.mark.parametrize("nth", range(1, 6))
def test_a_kill_at_any_write_sync_or_rename_leaves_the_one_before(
    call: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, make_checkpoint(1))
    calls = 0

    def die_in(original: Callable[..., Any]) -> Callable[..., Any]:
        def call_original(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Killed
            return original(*arguments, **options)

        return call_original

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(checkpoint, "_write", die_in(checkpoint._write))
        elif call == "fsync":
            patch.setattr(os, "fsync", die_in(os.fsync))
        else:
            patch.setattr(Path, call, die_in(getattr(Path, call)))
        try:
            checkpoint.save(tmp_path, make_checkpoint(2))
            died = False
        except Killed:
            died = True
    found = checkpoint.read_newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 1 if died and not (tmp_path / "step-2").exists() else 2
    checkpoint.prune(tmp_path, keep=2, best=None)
    assert not list(tmp_path.glob("*.tmp-*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def replace_by_link(path: Path) -> None:
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


@pytest.mark.parametrize("name", [checkpoint_files.TENSORS, checkpoint_files.FACTS, checkpoint_files.MANIFEST])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip_a_bit, replace_by_link])
def test_a_damaged_file_is_named_and_the_one_before_is_used(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    checkpoint.save(tmp_path, make_checkpoint(1))
    checkpoint.save(tmp_path, make_checkpoint(2))
    damage(tmp_path / "step-2" / name)
    complaints: list[str] = []
    found = checkpoint.read_newest(tmp_path, complaints.append)
    assert found is not None
    assert found.step == 1
    assert len(complaints) == 1
    assert name in complaints[0] or "manifest" in complaints[0]


@pytest.mark.parametrize("name", ["../outside", "rank-0.pickle", "/etc/passwd"])
def test_a_manifest_that_names_other_files_is_refused(name: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, make_checkpoint(1)) / checkpoint_files.MANIFEST
    listed = json.loads(path.read_text())
    listed["files"][name] = listed["files"].pop(checkpoint_files.TENSORS)
    path.write_text(json.dumps(listed))
    with pytest.raises(StorageError, match="lists other files"):
        checkpoint.read(path.parent)


def test_a_full_disk_says_how_much_is_missing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, pieces: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(StorageError, match=r"needs .* MB and the disk has"):
        checkpoint.save(tmp_path, make_checkpoint(1))
    assert not list(tmp_path.iterdir())


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, make_checkpoint(step))
    checkpoint.prune(tmp_path, keep=2, best=1)
    assert checkpoint.steps(tmp_path) == [4, 3, 1]
