"""A run whose folder is removed, moved or replaced while it trains ends with one sentence, and writes nothing there."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmpl.errors import FolderLostError
from fastmpl.run import training
from fastmpl.run.folder import LOCK, STATUS
from tests.run.short_runs import short_config, train_quietly


def replace(folder: Path) -> None:
    """Another run starts in the same place."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / LOCK).write_text("process 7 on another")
    (folder / STATUS).write_text("{}")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (shutil.rmtree, "was removed or moved while its run was training"),
    "moved": (lambda folder: folder.rename(folder.with_name("elsewhere")), "was removed or moved"),
    "replaced": (replace, "is in use by process 7 on another now"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_loses_its_folder_ends_at_its_next_save(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, sentence = CHANGES[change]
    taken: list[int] = []
    original = training.Training.take_step

    def take_step(run: training.Training, phase: Any) -> Any:
        taken.append(run.step)
        if run.step == 5:
            act(run.folder)
        return original(run, phase)

    monkeypatch.setattr(training.Training, "take_step", take_step)
    with pytest.raises(FolderLostError, match=sentence) as raised:
        train_quietly(short_config(tmp_path, run__checkpoint_every=6, run__steps=200))
    assert (raised.value.exit_code, str(raised.value).count("\n")) == (5, 0)
    assert taken[-1] < 60  # not to the end
    left = sorted(path.name for path in tmp_path.rglob("*") if path.parent.name == "small" and path.is_file())
    assert left == ([LOCK, STATUS] if change == "replaced" else [])
    if change == "replaced":
        assert (tmp_path / "small" / STATUS).read_text() == "{}"
