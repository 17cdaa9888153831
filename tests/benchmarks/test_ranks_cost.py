"""What several ranks cost beside one: the messages of a step, and the arithmetic of the record."""

from benchmarks.bench_ranks import ALL, APART, ONE, Found, Messages, Sample, make_steps, rows, time_messages
from benchmarks.steps import Size
from fastmpl.distributed.ranks import Ranks
from tests.ranks.spawned import on_ranks

TINY = Size("wrn_10_1", 16, 2, 4)


def _look_at_messages(ranks: Ranks) -> tuple[Messages, int]:
    step = make_steps(TINY, ranks, "float32")[ALL]
    return time_messages(step), sum(p.numel() for p in step.student.parameters.values())


def test_a_step_sends_two_gradients_and_one_number() -> None:
    for messages, parameters in on_ranks(2, _look_at_messages):
        assert messages.messages == 3
        assert messages.bytes == 4 * (2 * parameters + 1)
        assert messages.waiting > 0 < messages.transfer


def test_throughput_counts_the_images_of_all_ranks_until_the_last_is_done() -> None:
    def rank(one: list[float], apart: float, together: float) -> Found:
        taken = {ONE: one, APART: [apart], ALL: [together]}
        return Found({way: [Sample(wall, wall) for wall in walls] for way, walls in taken.items()}, [])

    first, second = rank([1.0], 1.0, 1.25), rank([], 1.1, 1.0)
    made = {str(row["ranks"]): row for row in rows([first, second])}
    assert [str(made[way]["throughput of one rank's"])[:5] for way in (ONE, APART, ALL)] == ["1.00x", "1.82x", "1.60x"]
    assert made[ALL]["seconds a step"] == "1.250"


def test_waiting_and_transfer_stand_apart() -> None:
    samples = {way: [Sample(1.0, 1.0)] for way in (ONE, APART, ALL)}
    row = rows([Found(samples, [Messages(3, 2_000_000, waiting=0.5, transfer=0.001)])])[-1]
    assert (row["MB a step"], row["ms of waiting"], row["ms of transfer"]) == ("2.0", "500.0", "1.0")
