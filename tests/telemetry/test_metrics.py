"""What is measured is added up without waiting, and the record of a run survives what happens to the run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.distributed.ranks import Ranks
from fastmpl.step.step_metrics import StepMetrics, zero_metrics
from fastmpl.telemetry.loggers import Line, Loggers, TensorBoard
from fastmpl.telemetry.metrics import Log, Meter, lines_a_read
from fastmpl.telemetry.metrics_file import FILE, Evaluation, read_lines


def report(value: float, **fields: float) -> StepMetrics:
    return StepMetrics(**{name: torch.tensor(fields.get(name, value)) for name in StepMetrics._fields})


def line(meter: Meter) -> dict[str, float]:
    """The steps so far as one line."""
    meter.finish(1)
    (finished,) = meter.read()
    return finished.values


def evaluation(step: int, **fields: Any) -> Evaluation:
    values = {"phase": "train", "network": "student", "split": "test", "accuracy": 0.5, "loss": 1.0, "images": 100}
    return Evaluation(**({"step": step} | values | fields))


def plain(folder: Path, warn: Callable[[str], None] | None = None) -> Log:
    return Log(folder, loggers=[], warn=warn)


class Raising:
    """A tracker whose server went away."""

    def __init__(self) -> None:
        self.asked = 0
        self.resumed: list[int] = []

    def write(self, line: Line) -> None:
        self.asked += 1
        raise ConnectionError("no route to host")

    def resume(self, step: int) -> None:
        self.resumed.append(step)

    def close(self) -> None: ...


def test_meter_gives_means_and_sums_the_skipped() -> None:
    meter = Meter()
    for loss, skipped in [(1.0, 0.0), (2.0, 1.0), (6.0, 2.0)]:
        meter.add(report(0.0, student_loss=loss, skipped=skipped))
    values = line(meter)
    assert values["student_loss"] == 3.0
    assert values["skipped"] == 3.0
    assert list(values) == list(StepMetrics._fields)


def test_meter_starts_again_after_a_read() -> None:
    meter = Meter()
    meter.add(report(5.0))
    line(meter)
    meter.add(report(1.0))
    assert line(meter)["pseudo_loss"] == 1.0


def test_meter_without_a_step_has_no_mean() -> None:
    values = line(Meter())
    assert math.isnan(values["student_loss"])
    assert values["skipped"] == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_skipped_update_does_not_spoil_the_mean_of_the_others(bad: float) -> None:
    meter = Meter()
    for loss in (2.0, bad, 4.0):
        meter.add(report(1.0, teacher_norm=loss))
    values = line(meter)
    assert values["teacher_norm"] == 3.0
    assert values["student_norm"] == 1.0


def test_meter_keeps_the_value_and_not_the_tensor_that_a_graph_overwrites() -> None:
    meter, reused = Meter(), report(1.0)
    meter.add(reused)
    for value in reused:
        value.fill_(100.0)
    assert line(meter)["student_loss"] == 1.0


def test_adding_to_a_meter_never_reads_the_device() -> None:
    """A fake tensor raises when its value is asked for."""
    with torch._subclasses.FakeTensorMode():
        meter = Meter()
        meter.add(zero_metrics(torch.zeros(1)))
        meter.finish(1)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            meter.read()


def test_finished_lines_wait_on_the_device_and_are_read_at_once() -> None:
    meter = Meter(lines=3)
    for step in range(1, 7):
        meter.add(report(float(step)))
        if step % 2 == 0:
            assert not meter.is_full
            meter.finish(step)
    assert meter.is_full
    assert [(found.step, found.values["student_loss"]) for found in meter.read()] == [(2, 1.5), (4, 3.5), (6, 5.5)]
    assert meter.read() == []
    assert not meter.is_full


@pytest.mark.parametrize("log_every", [1, 30, 50, 100, 250])
def test_a_gpu_is_read_at_most_once_in_a_hundred_steps(log_every: int) -> None:
    meter, reads = Meter(lines=lines_a_read(torch.device("cuda"), log_every)), []
    for step in range(1, 1001):
        if step % log_every == 0:
            meter.finish(step)
        if meter.is_full:
            meter.read()
            reads.append(step)
    assert all(later - before >= 100 for before, later in zip([0, *reads], reads, strict=False))
    assert reads


def test_a_long_mean_loses_no_digits() -> None:
    meter = Meter()
    for _ in range(10_000):
        meter.add(report(0.1))
    assert line(meter)["student_loss"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_the_kept_state_continues_an_interrupted_interval() -> None:
    whole, before, after = Meter(), Meter(), Meter()
    values = [report(value) for value in (1.0, 2.0, 5.0)]
    for value in values:
        whole.add(value)
    before.add(values[0])
    after.kept.copy_(before.kept)
    for value in values[1:]:
        after.add(value)
    assert line(after) == line(whole)


def test_ranks_are_averaged_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []

    class Done:
        def wait(self) -> None:
            """The message has arrived already."""

    def all_reduce(
        flat: torch.Tensor, *, group: object, async_op: bool
    ) -> Done:  # the other rank saw 3.0 where this one saw 1.0
        assert async_op
        messages.append(flat.numel())
        flat += torch.cat([torch.full((flat.numel() // 2,), 3.0), torch.ones(flat.numel() // 2)])
        return Done()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    meter = Meter(ranks=Ranks(0, 2))
    meter.add(report(1.0, skipped=3.0))
    values = line(meter)
    assert messages == [2 * len(StepMetrics._fields)]
    assert values["feedback"] == 2.0
    assert values["skipped"] == 3.0


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    with plain(tmp_path) as log:
        log.train(50, {"student_loss": 0.1, "skipped": 2.0}, seconds=1.5, images_per_second=300.0, waiting=0.01)
        log.evaluation(evaluation(50, accuracy=0.75))
    train, tested = read_lines(tmp_path)
    assert train == {
        "kind": "train", "step": 50, "seconds": 1.5, "images_per_second": 300.0, "waiting": 0.01,
        "student_loss": 0.1, "skipped": 2.0,
    }  # fmt: skip
    assert tested == {"kind": "evaluation"} | evaluation(50, accuracy=0.75)._asdict()


def test_a_line_is_on_the_disk_before_the_next(tmp_path: Path) -> None:
    with plain(tmp_path) as log:
        log.train(1, {}, 0.0, 0.0, 0.0)
        assert len(read_lines(tmp_path)) == 1


def test_a_number_that_is_not_finite_is_null_and_the_line_is_json(tmp_path: Path) -> None:
    with plain(tmp_path) as log:
        log.train(1, {"student_loss": math.nan, "teacher_norm": math.inf}, 0.0, 0.0, 0.0)
    text = (tmp_path / FILE).read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["student_loss"] is None
    assert line["teacher_norm"] is None


def test_an_interrupted_and_resumed_run_has_the_lines_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def steps(log: Log, first: int, last: int) -> None:
        for step in range(first, last + 1):
            log.train(step, {"student_loss": 1 / step}, 0.0, 0.0, 0.0)
            log.evaluation(evaluation(step))

    with plain(tmp_path / "whole") as log:
        steps(log, 1, 9)
    with plain(tmp_path / "resumed") as log:
        steps(log, 1, 6)
    with plain(tmp_path / "resumed") as log:
        log.truncate_after(4)
        steps(log, 5, 9)
    assert (tmp_path / "resumed" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


@pytest.mark.parametrize(
    "torn", [b'{"kind": "train", "st', b'{"kind": "train", "step": 2}', b"\x00\x00\x00", b"\xff\n"]
)
def test_a_torn_last_line_is_left_out_and_written_over(tmp_path: Path, torn: bytes) -> None:
    with plain(tmp_path) as log:
        log.train(1, {}, 0.0, 0.0, 0.0)
    with (tmp_path / FILE).open("ab") as file:
        file.write(torn)
    assert [line["step"] for line in read_lines(tmp_path)] == [1]
    with plain(tmp_path) as log:
        log.train(2, {}, 0.0, 0.0, 0.0)
    assert [json.loads(line)["step"] for line in (tmp_path / FILE).read_text().splitlines()] == [1, 2]


def test_a_folder_without_metrics_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path) == []


def test_a_logger_that_raises_is_warned_about_once_and_not_asked_again(tmp_path: Path) -> None:
    warnings: list[str] = []
    logger = Raising()
    with Log(tmp_path, loggers=[logger], warn=warnings.append) as log:
        for step in range(5):
            log.train(step, {}, 0.0, 0.0, 0.0)
    assert logger.asked == 1
    assert warnings == ["Raising failed and is switched off, training goes on: no route to host."]
    assert len(read_lines(tmp_path)) == 5


def test_loggers_are_told_from_where_a_run_is_resumed(tmp_path: Path) -> None:
    logger = Raising()
    with Log(tmp_path, loggers=[logger]) as log:
        log.truncate_after(4)
    assert logger.resumed == [4]


def test_one_logger_that_raises_does_not_silence_the_others() -> None:
    class Listening(Raising):
        def write(self, line: Line) -> None:
            self.asked += 1

    listening = Listening()
    loggers = Loggers([Raising(), listening], lambda sentence: None)
    loggers.write({"kind": "train", "step": 1})
    loggers.write({"kind": "train", "step": 2})
    assert listening.asked == 2


def test_a_full_disk_costs_lines_and_never_the_run(tmp_path: Path) -> None:
    class Full:
        """A file on a disk with room for half a line."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            return int(self.file.write(content[: len(content) // 2]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    warnings: list[str] = []
    with plain(tmp_path, warnings.append) as log:
        log.train(1, {}, 0.0, 0.0, 0.0)
        there, log._file = log._file, Full(log._file)  # type: ignore[assignment]
        log.train(2, {}, 0.0, 0.0, 0.0)
        log.train(3, {}, 0.0, 0.0, 0.0)
        log._file = there
        log.train(4, {}, 0.0, 0.0, 0.0)
    assert [json.loads(line)["step"] for line in (tmp_path / FILE).read_text().splitlines()] == [1, 4]
    assert len(warnings) == 2
    assert "the disk is full" in warnings[0]
    assert warnings[1].startswith("2 lines of ")


def test_tensorboard_gets_the_curves_and_hides_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "tensorboard"
    for first, last, resumed in [(1, 4, False), (3, 5, True)]:
        board = TensorBoard(folder)
        if resumed:
            board.resume(2)
        for step in range(first, last + 1):
            board.write({"kind": "train", "step": step, "student_loss": float(first), "feedback": None})
        board.write({"kind": "evaluation"} | evaluation(last)._asdict())
        board.close()
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/student_loss", "test/student_accuracy", "test/student_loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/student_loss")] == [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)]


def test_a_run_without_tensorboard_installed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    warnings: list[str] = []
    with Log(tmp_path, warn=warnings.append) as log:
        log.train(1, {}, 0.0, 0.0, 0.0)
    assert len(warnings) == 1
    assert len(read_lines(tmp_path)) == 1


def test_a_preview_is_of_all_steps_that_were_not_read_and_leaves_the_lines_as_they_are() -> None:
    meter = Meter(lines=2)
    for step in range(1, 4):
        meter.add(report(float(step)))
        if step == 2:
            meter.finish(step)
    assert meter.preview()["student_loss"] == 2.0
    assert meter.preview()["skipped"] == 6.0
    (finished,) = meter.read()
    assert finished.values["student_loss"] == 1.5
    assert line(meter)["student_loss"] == 3.0
