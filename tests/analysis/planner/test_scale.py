"""What is planned for many ranks and images: the time of messages, the needs, and where the numbers are from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastmpl.analysis import planner
from fastmpl.analysis.planner import scale
from fastmpl.analysis.planner.link import Link, time_messages
from fastmpl.analysis.planner.messages import Messages, count_parts
from fastmpl.cli import main
from fastmpl.config import Config, load

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "launch/configs/digits.toml"
SLOW = Link(between=1e9, inside=10e9, latency=1e-3, machine=4)


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return found


def config(**changes: Any) -> Config:
    small = {"data.batch_labelled": 1024, "data.batch_unlabelled": 2048, "feedback.kind": "off"}
    small |= {"student.model": "perceptron", "teacher.model": "perceptron"}
    return load(DIGITS, small | {key.replace("__", "."): value for key, value in changes.items()})


def plan(config: Config, ranks: int, pace: planner.Pace | None = None, **options: Any) -> planner.ScalePlan:
    found = planner.plan_memory(config, ranks=ranks, memory=2**30, schedules=("split",))
    return planner.plan_scale(config, found, found.fits[0], pace or planner.Pace(0.1, "stated"), **options)


def test_a_ring_within_a_machine() -> None:
    message = Messages("any", "all-reduce", 1, 1_000_000)
    assert time_messages([message], 4, SLOW) == pytest.approx(2 * 3 * (1e-3 + 4e6 / 4 / 10e9))
    half = message._replace(collective="all-gather")
    assert time_messages([half], 4, SLOW) == pytest.approx(time_messages([message], 4, SLOW) / 2)


def test_large_messages_go_round_and_small_ones_up_a_tree() -> None:
    inside = 2 * 3 * 1e-3
    large = time_messages([Messages("any", "all-reduce", 1, 10**9)], 32, SLOW)
    assert large == pytest.approx(inside + 2 * 3 * 4e9 / 4 / 10e9 + 2 * 7 * (1e-3 + 4e9 / 4 / 8 / 1e9))
    small = time_messages([Messages("any", "all-reduce", 1, 1)], 32, SLOW)
    assert small == pytest.approx(inside + 2 * 3 * 1e-3, rel=1e-4)  # 8 machines are a tree of depth 3


def test_messages_are_cut_where_a_tensor_has_no_room() -> None:
    assert [count_parts(sizes, 10) for sizes in ((), (4, 6), (4, 7), (12, 1), (3, 12))] == [0, 1, 2, 2, 2]


def test_a_step_that_was_measured_on_as_many_ranks_has_its_messages_in_it() -> None:
    alone, four = (plan(config(), 4, planner.Pace(0.1, "stated", ranks)) for ranks in (1, 4))
    assert four.sending == alone.sending > 0
    assert (alone.step, four.step) == (pytest.approx(0.1 + alone.sending), 0.1)


def test_a_step_between_those_that_credit_sends_no_feedback() -> None:
    """The mean of k steps: one sends all, the others what a step without feedback does."""
    exact, off = {"feedback__kind": "exact"}, {"feedback__kind": "off"}
    always, never, fourth = (plan(config(**c), 4) for c in (exact, off, exact | {"feedback__every": 4}))
    assert fourth.messages == always.messages and always.sending > never.sending
    assert fourth.sending == pytest.approx((always.sending + 3 * never.sending) / 4)


def test_batches_that_no_step_takes_are_neither_counted_nor_refused() -> None:
    odd = {"data__batch_unlabelled": 2049, "data__trusted": 16, "data__batch_trusted": 3}
    alone = config(method__name="supervised", **odd)
    assert planner.uneven_batches(alone, 2) == []
    assert planner.plan_memory(alone, ranks=2, memory=2**30, schedules=("split",)).batches == {"batch_labelled": 512}
    fed = config(feedback__kind="exact", feedback__images="trusted", **odd)
    assert [sentence.split()[0] for sentence in planner.uneven_batches(fed, 2)] == [
        "data.batch_unlabelled",
        "data.batch_trusted",
    ]
    assert planner.plan_memory(fed, ranks=2, memory=2**30, schedules=("split",)).batches["batch_trusted"] == 2


def test_a_single_rank_sends_nothing() -> None:
    found = plan(config(), 1)
    assert (found.messages, found.sending, found.share) == ([], 0, 0)


def test_more_ranks_send_longer_in_a_shorter_step() -> None:
    eight, many = plan(config(), 8), plan(config(), 1024)
    assert many.messages == eight.messages
    assert many.sending > 1.5 * eight.sending
    assert many.machines == 128


def test_a_faster_link_shortens_the_messages_between_machines_alone() -> None:
    slow, fast = (plan(config(), 16, link=Link(between=b)).sending for b in (1e9, 50e9))
    assert fast < slow
    assert plan(config(), 8, link=Link(between=1e9)).sending == plan(config(), 8).sending


def test_the_need_nearest_to_its_limit_comes_first() -> None:
    loads = [need.load for need in plan(config(), 64, images=130_000_000).needs]
    assert loads == sorted(loads, reverse=True)


@pytest.mark.parametrize(
    ("ranks", "changes", "images", "what"),
    [
        (1024, {"student__model": "conv"}, 0, "batch norm"),
        (
            64,
            {"student__norm": "group", "teacher__norm": "group", "data__batch_labelled": 64},
            10**9,
            "lists of images",
        ),
        (2**12, {"data__batch_labelled": 2**12}, 0, "heartbeats"),
        (8, {"run__checkpoint_every": 1, "student__width": 4096, "teacher__width": 4096}, 0, "checkpoints"),
    ],
)
def test_what_breaks_is_told(ranks: int, changes: dict[str, Any], images: int, what: str) -> None:
    found = plan(config(**{"data__batch_unlabelled": 2**12} | changes), ranks, images=images)
    assert [what == need.name for need in found.needs if need.load >= 1].count(True) == 1
    assert what in "\n".join(planner.format_scale(found, [])).replace("\n             ", " ")


def test_images_that_are_decoded_once_need_no_cores() -> None:
    assert not any(need.name == "decoding" for need in plan(config(), 8).needs)


def test_batches_that_ranks_cannot_share_are_refused_with_the_next_size() -> None:
    uneven = config(data__batch_labelled=100, data__batch_unlabelled=256)
    assert planner.uneven_batches(uneven, 8) == ["data.batch_labelled = 100 is not a multiple of 8; set 104."]
    parts = config(data__batch_labelled=48, data__batch_unlabelled=256, system__accumulate=2)
    assert planner.uneven_batches(parts, 16) == ["data.batch_labelled = 48 is not a multiple of 32; set 64."]


def test_the_share_of_messages_in_a_step_of_unknown_length_is_a_bound() -> None:
    small, large = (plan(config(), 8, planner.Pace(seconds, "stated")) for seconds in (1e-4, 0.1))
    assert "at most" in "".join(planner.format_scale(small, [])) and small.share > large.share
    assert "at most" not in "".join(planner.format_scale(large, []))
    assert [any(need.name == "messages" for need in found.needs) for found in (small, large)] == [False, True]


def test_the_command_says_what_ranks_send(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DIGITS), "--ranks", "16", "--images", "1281167", "--link", "25"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    folded = " ".join(said.split())
    assert "25 GB/s a GPU between machines" in folded and "1,281,167 images" in folded
    assert re.search(r"% of the step, which takes [\d.]+ s with them", folded)


def test_a_batch_of_less_than_an_image_a_rank_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DIGITS), "--ranks", "1024"]) == 2
    assert "Set it to a multiple of 1024" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["0", "-1", "nan", "inf"])
def test_a_link_that_is_no_speed_is_refused(link: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DIGITS), "--link", link]) == 2
    assert "a number at least 0.001 is needed" in capsys.readouterr().err


def test_constants_are_those_of_the_records() -> None:
    """A record may become better than what is planned with, and not worse."""
    (loader,) = (r for r in record("loader")["rows"] if r["loader"] == "fastmpl" and r["RandAugment"] != "no")
    assert float(loader["CPU ms a sample"].split()[0]) <= 1.1e3 * scale.DECODED
    assert record("loader")["config"]["JPEG bytes"] == pytest.approx(scale.ENCODED, rel=0.1)
    listing = record("listing")
    files = listing["config"]["files"]
    for source in ("folder", "file_list"):
        rows = {row["step"]: row for row in listing["rows"] if row["source"] == source}
        before, after = rows["and fastmpl"], rows["the next epoch's"]
        assert 1e6 * (float(after["peak MB"]) - float(before["peak MB"])) / files <= 1.1 * scale.LISTED
        assert (float(after["wall s"]) - float(before["wall s"])) / files <= 1.2 * scale.LISTING
    assert record("scale")["config"]["store_call_us"] <= 1.2e6 * scale.ANSWERED
    store = record("store")
    assert store["config"]["bytes"] / store["config"]["rows"] == pytest.approx(scale.STORED, rel=0.02)
