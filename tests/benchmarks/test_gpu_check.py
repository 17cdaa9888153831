"""The check of a GPU machine: whatever a row does to its process, the other rows are written."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.environment import COMMIT_VARIABLE, commit
from benchmarks.gpu import every_kernel
from benchmarks.gpu.cases import Case, Device, Group, MissingError, Part, Setting
from benchmarks.gpu.graph_checks import check_refused_capture
from benchmarks.gpu.groups import GROUPS
from benchmarks.gpu.loading_hazards import describe_pile
from benchmarks.gpu.operations import OPERATIONS
from benchmarks.gpu.supervision import NOT_REACHED, Attempt, GroupRun
from benchmarks.gpu.worker import POISONED, judge, run_cases
from benchmarks.gpu_check import _share, give_verdict, main
from benchmarks.records import Record, Row, save
from tests.benchmarks.planted_worker import KEPT, VARIABLE

PLANTED = ("-m", "tests.benchmarks.planted_worker")
MACHINE = Group("machine", "benchmarks.gpu.machine", 60)


def rows_of(folder: Path, part: Part) -> list[dict[str, Any]]:
    return json.loads((folder / f"gpu_check_imitated_{part}.json").read_text())["rows"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path)]) == 3
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "needs a CUDA device" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_ends_its_process_costs_its_own_row_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {
        "crash": "SIGABRT",
        "exception": "RuntimeError: planted",
        "illegal access": "SIGSEGV",
        "hang": "no answer within 1 s",
        "exit": "exit code 9",
    }
    monkeypatch.setenv(VARIABLE, ",".join(reasons))
    rows = list(GroupRun(MACHINE, Attempt("imitated", tmp_path, PLANTED), 240).rows())
    for row, (fault, why) in zip(rows[: len(reasons)], reasons.items(), strict=True):
        assert (row["what"], row["status"]) == (f"planted {fault}", "failed")
        assert why in str(row["why"])
    others = rows[len(reasons) :]
    assert [(row["what"], row["status"]) for row in others] == [("torch", "measured"), ("device", "missing")]
    assert "in hang" in (tmp_path / "machine.log").read_text()  # where it stood


def test_rows_that_are_not_reached_are_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "hang")
    (row,) = GroupRun(MACHINE, Attempt("imitated", tmp_path, PLANTED), 0.0).rows()
    assert row["status"] == "missing"
    assert "not reached" in str(row["why"])


def test_the_start_of_a_process_is_not_the_time_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "exception")
    run = GroupRun(MACHINE, Attempt("imitated", tmp_path, PLANTED), 240, time.monotonic() + 480)
    end = run._end
    assert [row["what"] for row in run.rows()] == ["planted exception", "torch", "device"]
    assert run._end > end


def test_groups_that_are_asked_share_the_time() -> None:
    few, many = Group("few", "", 30), Group("many", "", 90)
    assert _share(many, [many], 560) == 560
    assert _share(few, [few, many], 560) == 140
    assert _share(many, [many, few], 100) == 90
    assert _share(many, [many], -1) == 0


def row_of(group: str, status: str, why: str = "") -> Row:
    return {"group": group, "what": "", "status": status, "why": why}


@pytest.mark.parametrize(
    ("rows", "said", "code"),
    [
        ([row_of("kernels", "passed"), row_of("machine", "missing", "not installed")], "is fit, as far", 0),
        ([row_of("kernels", "passed"), row_of("zero", "missing", "needs deepspeed")], "Not asked: zero", 0),
        (
            [row_of("kernels", "failed"), row_of("graphs", "missing", NOT_REACHED)],
            "not fit: 1 rows failed (kernels)",
            1,
        ),
        ([row_of("kernels", "passed"), row_of("kernels", "missing", NOT_REACHED)], '--group "kernels"', 4),
    ],
)
def test_the_verdict_tells_what_was_not_asked_from_what_is_right(rows: list[Row], said: str, code: int) -> None:
    verdict, found = give_verdict(rows, "cuda")
    assert said in verdict
    assert found == code


def test_a_group_that_is_asked_again_keeps_the_rows_of_the_others(tmp_path: Path) -> None:
    asked = ["--part", "correct", "--device", "imitated", "--out", str(tmp_path)]
    early: Row = {"part": "correct", **row_of("graphs", "failed")}
    save(Record("gpu_check_imitated_correct", "table", [early, {**early, "group": "machine"}], {}), tmp_path)
    assert main([*asked, "--group", "machine"]) == 1  # for the row that is kept
    first, *found = rows_of(tmp_path, "correct")
    assert first["group"] == "graphs"
    assert {row["group"] for row in found} == {"machine"}
    assert "failed" not in {row["status"] for row in found}


def test_a_refused_capture_passes_where_it_is_said_and_changes_nothing(tmp_path: Path) -> None:
    setting = Setting("imitated", tmp_path)
    found = check_refused_capture(setting)
    assert found["passed"], found
    assert "reads the device" in str(found["said"])
    harmless = check_refused_capture(setting, lambda report: None)
    assert (harmless["passed"], harmless["why"]) == (False, "0 notes")


def test_batches_that_pile_up_beside_captured_steps_are_found() -> None:
    assert describe_pile(made=6, ahead=1) == ""
    assert "40 batches were in memory at once" in describe_pile(made=40, ahead=1)


def list_failed(folder: Path, *asked: str) -> list[Any]:
    """The cases that failed on the imitated GPU, with their reasons."""
    main([*asked, "--device", "imitated", "--seconds", "900", "--out", str(folder)])
    return [(row["group"], row["what"], row["why"]) for row in rows_of(folder, "correct") if row["status"] == "failed"]


def test_the_loader_s_memory_is_checked_beside_captured_steps(tmp_path: Path) -> None:
    assert list_failed(tmp_path, "--part", "correct", "--group", "loading hazards") == []
    found = {row["what"]: row["status"] for row in rows_of(tmp_path, "correct")}
    assert found["captured, 1 batches ahead"] == found["eager, 0 batches ahead"] == "passed"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_case_that_can_be_imitated_passes(tmp_path: Path) -> None:
    assert list_failed(tmp_path, "--part", "correct") == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("fault", ["crash", "hang", "illegal access"])
@pytest.mark.parametrize("part", list(GROUPS))
def test_every_group_survives_a_planted_fault(
    part: Part, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, fault)
    assert main(["--part", part, "--device", "imitated", "--seconds", "900", "--out", str(tmp_path)], PLANTED) == 1
    found = rows_of(tmp_path, part)
    for group in GROUPS[part]:
        planted, *others = [row for row in found if row["group"] == group.name]
        assert (planted["what"], planted["status"]) == (f"planted {fault}", "failed"), group.name
        assert 1 <= len(others) <= KEPT, group.name
        assert all(row["status"] in ("passed", "measured", "missing") for row in others), others


def test_the_record_is_written_again_after_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr("benchmarks.gpu_check.save", lambda record, folder: saved.append(len(record.rows)))
    asked = ["--part", "correct", "--device", "imitated", "--group", "machine", "--out", str(tmp_path)]
    assert main(asked) == 0
    assert saved == list(range(1, len(saved) + 1))
    assert len(saved) > KEPT


def test_an_unknown_group_is_refused_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--group", "kernel", "--device", "imitated", "--out", str(tmp_path)])
    assert "kernels" in capsys.readouterr().err


def run_here(*cases: Case) -> tuple[int, list[dict[str, Any]]]:
    said: list[dict[str, Any]] = []
    return run_cases(cases, 0, said.append), [event["row"] for event in said if event["event"] == "row"]


def test_a_missing_package_is_a_missing_row_and_a_module_of_ours_is_a_failure() -> None:
    def lack() -> dict[str, Any]:
        import no_such_package

        return {"found": str(no_such_package)}

    def break_ours() -> dict[str, Any]:
        from benchmarks import no_such_module  # type: ignore[attr-defined]

        return {"found": str(no_such_module)}

    def want() -> dict[str, Any]:
        raise MissingError("needs two GPUs")

    _, rows = run_here(Case("a", lack), Case("b", break_ours), Case("c", want))
    assert [row["status"] for row in rows] == ["missing", "failed", "missing"]
    assert [row["why"] for row in rows][::2] == ["needs the package no_such_package", "needs two GPUs"]


def test_a_case_that_breaks_the_device_fails_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronise() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronise)
    code, rows = run_here(Case("a", lambda: {"passed": True}), Case("b", lambda: {"passed": True}))
    assert code == POISONED
    assert [(row["status"], row["why"]) for row in rows] == [
        ("failed", "RuntimeError: CUDA error: an illegal memory access was encountered")
    ]


def test_numbers_that_json_lacks_become_words() -> None:
    verdict = judge(Case("a", lambda: {"passed": False, "error": float("nan"), "list": [float("inf"), 1.0]}))
    assert (verdict.row["status"], verdict.row["error"], verdict.row["list"]) == ("failed", "nan", ["inf", 1.0])


def test_without_a_repository_the_commit_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.environment.ROOT", Path("/"))
    monkeypatch.setenv(COMMIT_VARIABLE, "abc1234")
    assert commit() == "abc1234"
    monkeypatch.delenv(COMMIT_VARIABLE)
    assert commit() == "unknown"


def test_the_cases_of_a_kernel_fail_where_a_kernel_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import kernel_checks, operations

    setting = Setting("imitated", Path())
    (entropy,) = [o for o in operations.OPERATIONS if o.name == "soft_cross_entropy, labels"]
    assert kernel_checks.check_accuracy(entropy, torch.float32, setting)["passed"]
    monkeypatch.setattr(kernel_checks, "backend_of", lambda device: "wrong")

    def spoil(operation: operations.Operation, backend: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        found = operations.run_on(operation, "reference", inputs)
        return [value * (1 + 1e-3) for value in found] if backend == "wrong" else found

    monkeypatch.setattr(kernel_checks, "run_on", spoil)
    assert not kernel_checks.check_accuracy(entropy, torch.float32, setting)["passed"]


def test_the_shares_of_the_compiling_processes_are_all_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked: list[tuple[str, torch.dtype]] = []
    monkeypatch.setattr(
        every_kernel, "check_accuracy", lambda operation, dtype, _: checked.append((operation.name, dtype))
    )
    for number in range(5):
        every_kernel.main(["--device", "imitated", "--share", str(number), "5"])
    assert sorted(checked, key=str) == sorted(((o.name, t) for o in OPERATIONS for t in o.types), key=str)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_devices_are_those_of_the_command_line() -> None:
    assert Setting("imitated", Path()).device == torch.device("cpu")
    assert set(Device.__args__) == {"cuda", "imitated"}  # type: ignore[attr-defined]


def test_every_operation_takes_the_inputs_that_are_made_for_it() -> None:
    from benchmarks.gpu import operations

    for operation in operations.OPERATIONS:
        inputs = operations.make_inputs(operation, 2, 5, torch.float32, torch.device("cpu"))
        found = operations.run_on(operation, "reference", inputs)
        assert found and all(value.isfinite().all() for value in found), operation.name
