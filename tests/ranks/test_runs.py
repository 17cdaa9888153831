"""A run on several ranks as its user sees it: one run, one folder, one sentence, and nothing left behind."""

import json
import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fastmpl.distributed.process_group import MEETING
from fastmpl.distributed.ranks import ALONE, Ranks
from fastmpl.run import checkpoint, checkpoint_files
from fastmpl.run.classifier import load_classifier
from fastmpl.telemetry.metrics_file import read_lines
from tests.ranks.runs import Ended, Job, conv
from tests.ranks.spawned import on_ranks
from tests.run.short_runs import short_config, train_quietly, untimed_lines


def last(folder: Path, rank: int = 0, size: int = 2, step: int = 20) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / f"small/checkpoints/step-{step}", Ranks(rank, size)).tensors


def run(job: Job, size: int = 2) -> list[Ended]:
    """The job on ranks that meet by themselves, as under a launcher."""
    return on_ranks(size, job, grouped=False)


class Whole(NamedTuple):
    """An uninterrupted run on two ranks, with batch norm on each rank's own images."""

    folder: Path
    ended: list[Ended]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(folder, run(Job(conv(folder))))


def test_two_ranks_train_the_run_of_one_process(tmp_path: Path) -> None:
    without_norm = {"teacher__model": "perceptron", "student__model": "perceptron"}
    first, second = run(Job(short_config(tmp_path / "two", **without_norm)))
    alone = train_quietly(short_config(tmp_path / "one", **without_norm))
    assert (first.code, second.code) == (0, 0)
    assert first.results is not None and second.results is not None
    assert first.results == second.results | {"seconds": first.results["seconds"]}
    assert first.results["last"] == alone.last
    for one, two in zip(untimed_lines(tmp_path / "one/small"), untimed_lines(tmp_path / "two/small"), strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            close = 0.05 if key in ("feedback_size", "feedback_ratio") else 1e-3  # a mean of roots over ranks
            assert value == (two[key] if isinstance(value, str) else pytest.approx(two[key], close, 1e-5)), key
    found, expected = last(tmp_path / "two"), last(tmp_path / "one", size=1)
    for name, value in expected.items():
        if name != "meter":
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_the_first_rank_alone_speaks_and_writes(whole: Whole) -> None:
    assert "validation" in whole.ended[0].told
    assert whole.ended[1].told == ""
    assert json.loads((whole.folder / "small/STATUS.json").read_text())["state"] == "done"
    steps = [line["step"] for line in read_lines(whole.folder / "small") if line["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_a_network_that_is_read_back_has_the_mean_statistics_of_all_ranks(whole: Whole) -> None:
    """Each rank goes on with its own; what is evaluated and kept is no single rank's."""
    written = load_classifier(whole.folder / "small", "average").module.state_dict()
    name = "blocks.0.1.running_mean"
    own = [last(whole.folder, rank)[f"student/average/{name}"] for rank in (0, 1)]
    assert not torch.equal(*own)
    torch.testing.assert_close(written[name], (own[0] + own[1]) / 2)


def test_ranks_that_one_signal_stops_continue_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    """Each rank's own running statistics included."""
    assert [e.code for e in whole.ended] == [0, 0]
    stopped = run(Job(conv(tmp_path / "parts"), event="stop", rank=1))
    assert [e.code for e in stopped] == [75, 75]
    assert sum(bool(e.told) for e in stopped) == 1
    status = json.loads((tmp_path / "parts/small/STATUS.json").read_text())
    assert status["state"] == "interrupted"
    assert 7 <= status["step"] < 20
    assert [e.code for e in run(Job(conv(tmp_path / "parts")))] == [0, 0]
    for rank in (0, 1):
        expected, found = last(whole.folder, rank), last(tmp_path / "parts", rank)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert untimed_lines(whole.folder / "small") == untimed_lines(tmp_path / "parts/small")
    name = "student/module/blocks.0.1.running_mean"
    assert not torch.equal(last(whole.folder, 0)[name], last(whole.folder, 1)[name])


def test_another_number_of_ranks_continues_from_the_means(tmp_path: Path) -> None:
    run(Job(conv(tmp_path), event="stop"))
    folder = tmp_path / "small/checkpoints"
    step = checkpoint.steps(folder)[0]
    each = [checkpoint.read(folder / f"step-{step}", Ranks(rank, 2)).tensors for rank in (0, 1)]
    mean = checkpoint.read_newest(folder, pytest.fail, ALONE)
    assert mean is not None and mean.ranks == 2
    for name, value in mean.tensors.items():
        torch.testing.assert_close(value, (each[0][name] + each[1][name]) / 2, rtol=1e-6, atol=1e-7, check_dtype=False)
    assert train_quietly(conv(tmp_path)).steps == 20


def test_a_bad_file_of_one_rank_makes_all_use_the_checkpoint_before(tmp_path: Path) -> None:
    settings = short_config(tmp_path, run__checkpoint_every=10)
    first = run(Job(settings))
    path = tmp_path / "small/checkpoints/step-20" / checkpoint_files.tensors_of(1)
    path.write_bytes(path.read_bytes()[:-1])
    again = run(Job(settings))
    assert str(path) in again[0].told
    assert "Continuing at step 10" in again[0].told
    assert again[0].results["last"] == first[0].results["last"]


def test_an_error_of_one_rank_ends_all_with_its_sentence_and_code(tmp_path: Path) -> None:
    ended = run(Job(short_config(tmp_path), event="data", rank=1))
    assert [e.code for e in ended] == [3, 3]
    assert [e.told for e in ended] == ["", "Data: an image vanished."]
    status = json.loads((tmp_path / "small/STATUS.json").read_text())
    assert (status["state"], status["message"]) == ("failed", "Data: an image vanished.")


@pytest.mark.parametrize("noticing", [0, 1])
def test_ranks_that_lose_their_folder_end_with_one_sentence(noticing: int, tmp_path: Path) -> None:
    """Whichever of them takes the failed save first: the other may already wait in the next step."""
    settings = short_config(tmp_path, run__checkpoint_every=10, run__steps=400)
    ended = run(Job(settings, event="lose", rank=noticing, file=str(tmp_path / "small")))
    assert [e.code for e in ended] == [5, 5]
    assert sum(bool(e.told) for e in ended) == 1
    assert "was removed or moved while its run was training" in ended[0].told + ended[1].told
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("killed", [0, 1])
def test_the_ranks_that_are_left_say_which_one_was_lost(killed: int, tmp_path: Path) -> None:
    settings = short_config(tmp_path, run__checkpoint_every=5)
    left = on_ranks(2, Job(settings, event="kill", rank=killed), grouped=False, killed=killed)
    assert [e.code for e in left] == [6]
    assert f"Rank {killed} no longer answers" in left[0].told
    found = checkpoint.read_newest(tmp_path / "small/checkpoints", pytest.fail)
    assert found is not None and found.step == 5


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_rank_that_stands_still_is_named_with_its_operation_within_the_timeout(frozen: int, tmp_path: Path) -> None:
    """A collective is given up after system.timeout; so is a call of the store, which rank 0 serves."""
    # a busy machine may be silent for less than 10 seconds
    settings = short_config(tmp_path, run__checkpoint_every=5, system__timeout=10)
    began = time.monotonic()
    left = on_ranks(2, Job(settings, event="freeze", rank=frozen), grouped=False, killed=frozen)
    assert time.monotonic() - began < 120
    assert [e.code for e in left] == [6]
    # it beats twice a second
    seen = rf"Rank {frozen} no longer answers \(last seen: rank {frozen} in step \d+ at \w+\.py:"
    assert re.search(seen, left[0].told), left[0].told
    assert f"Rank {1 - frozen} waited in step 7 at ranks.py:" in left[0].told
    assert "all_reduce" in (tmp_path / f"small/stacks/rank-{1 - frozen}.txt").read_text()
    found = checkpoint.read_newest(tmp_path / "small/checkpoints", pytest.fail)
    assert found is not None and found.step == 5


def test_a_batch_that_ranks_cannot_share_is_refused_once(tmp_path: Path) -> None:
    ended = run(Job(short_config(tmp_path, data__batch_labelled=19)))
    assert [e.code for e in ended] == [3, 3]
    assert sorted("cannot be shared by 2 ranks" in e.told for e in ended) == [False, True]


def test_the_meeting_of_a_run_that_was_here_before_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """Its launcher may be the same, where that one starts the ranks again."""
    assert [e.code for e in run(Job(short_config(tmp_path), event="stop", at=2))] == [75, 75]
    assert (tmp_path / "small" / MEETING).is_file()
    assert [e.code for e in run(Job(short_config(tmp_path)))] == [0, 0]


def test_a_start_that_fails_on_ranks_leaves_no_folder(tmp_path: Path) -> None:
    assert [e.code for e in run(Job(short_config(tmp_path / "runs", data__batch_labelled=19)))] == [3, 3]
    assert not (tmp_path / "runs").exists()
