"""Runs over folders with bad files of every kind: none stops, and ranks see what one process sees."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmpl.commands.check import check_data
from fastmpl.config import Config
from fastmpl.data.files import listing
from fastmpl.distributed.ranks import Ranks
from tests.pictures import BAD, make, spoil
from tests.ranks.runs import Ended, Job
from tests.ranks.spawned import on_ranks
from tests.ranks.test_runs import last
from tests.run.short_runs import short_config, train_quietly

SPOILT = ("labelled/red", "unlabelled", "test/red")
OPENED = {name for name in BAD if name.endswith((".jpg", ".png"))}
STEPS = 10


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of every kind, and bad files of every kind in each part."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make(tmp_path / "pictures", labelled=13, unlabelled=4, test=3)
    for part in SPOILT:
        spoil(root / part, np.random.default_rng(0))
    return root


def settings(output: Path, root: Path, **changes: object) -> Config:
    """Perceptrons, which have no batch norm: what ranks compute is then what one process does."""
    keys = {
        "run__steps": STEPS,
        "data__source": "folder",
        "data__root": str(root),
        "data__decode": "always",
        "data__labels": 0,
        "data__unlabelled": 0,
        "data__validation": 6,
        "data__batch_unlabelled": 10,
        "data__image_size": 8,
        "teacher__model": "perceptron",
        "student__model": "perceptron",
    }
    return short_config(output, **(keys | changes))


def run(settings: Config, root: Path, **event: Any) -> list[Ended]:
    return on_ranks(2, Job(settings, cache=str(root.parent / "cache"), **event), grouped=False)


def read_replaced(output: Path) -> list[dict[str, object]]:
    path = output / "small/replaced.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("checked", [False, True])
def test_a_run_over_all_bad_files_neither_stops_nor_differs_between_ranks(
    checked: bool, root: Path, tmp_path: Path
) -> None:
    if checked:
        list(check_data(settings(tmp_path, root)))
    ended = run(settings(tmp_path / "two", root), root)
    assert [one.code for one in ended] == [0, 0], ended[0].told
    alone = train_quietly(settings(tmp_path / "one", root))
    first, second, one = (
        last(tmp_path / output, rank, size, STEPS)
        for output, rank, size in (("two", 0, 2), ("two", 1, 2), ("one", 0, 1))
    )
    for name, value in one.items():
        if name != "meter":
            assert np.array_equal(first[name], second[name])
            np.testing.assert_allclose(first[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    assert ended[0].results is not None and ended[0].results["last"] == alone.last
    assert read_replaced(tmp_path / "two") == read_replaced(tmp_path / "one")
    names = {Path(str(line["file"])).name for line in read_replaced(tmp_path / "one")}
    assert names == (set() if checked else OPENED)


def test_a_run_over_bad_files_continues_as_if_it_had_not_been_stopped(root: Path, tmp_path: Path) -> None:
    assert [one.code for one in run(settings(tmp_path / "whole", root), root)] == [0, 0]
    parts = settings(tmp_path / "parts", root)
    assert [one.code for one in run(parts, root, event="stop", rank=1, at=3)] == [75, 75]
    assert [one.code for one in run(parts, root)] == [0, 0]
    for rank in (0, 1):
        expected, found = (last(tmp_path / output, rank, step=STEPS) for output in ("whole", "parts"))
        assert all(np.array_equal(found[name], value) for name, value in expected.items())
    assert read_replaced(tmp_path / "parts") == read_replaced(tmp_path / "whole") != []


def test_an_image_that_vanishes_while_ranks_train_is_replaced_and_counted(root: Path, tmp_path: Path) -> None:
    list(check_data(settings(tmp_path, root)))  # leaves one reason to replace an image
    file = root / "unlabelled/part 1/image 000é.jpg"
    ended = run(settings(tmp_path, root, run__steps=20), root, event="vanish", rank=1, at=4, file=str(file))
    assert [one.code for one in ended] == [0, 0]
    first, second = (last(tmp_path, rank, step=20) for rank in (0, 1))
    assert all(np.array_equal(first[name], second[name]) for name in first if name != "meter")
    lines = read_replaced(tmp_path)
    assert len(lines) > 5  # each epoch is shorter than a batch
    assert {(line["file"], line["reason"]) for line in lines} == {
        (file.relative_to(root).as_posix(), "the file is gone, or a link to nothing")
    }
    assert len({line["by"] for line in lines}) == 1
    assert "was replaced by" in ended[0].told


def test_ranks_that_find_other_images_are_told_before_the_first_step(root: Path, tmp_path: Path) -> None:
    ended = on_ranks(2, OtherImages(Job(settings(tmp_path, root), cache=str(tmp_path / "cache"))), grouped=False)
    assert [one.code for one in ended] == [3, 3]
    assert any("rank 1 found other images than rank 0" in one.told for one in ended)


@dataclass(frozen=True)
class OtherImages:
    """A job whose second rank does not see a file that the first has seen."""

    job: Job

    def __call__(self, ranks: Ranks) -> Ended:
        if ranks.rank:
            own, plain, unseen = listing.why_hidden, listing._is_plain_image, "image 001é.JPEG"
            listing.why_hidden = lambda name: "not seen" if name == unseen else own(name)
            listing._is_plain_image = lambda entry: entry.name != unseen and plain(entry)
        return self.job(ranks)
