"""`fastmpl doctor` is quick, finds a kernel that computes wrongly, and says of an apex which one it is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpl.cli import main
from fastmpl.commands import doctor
from fastmpl_kernels import dispatch
from tests.learners import fake_apex


def findings(found: Any) -> dict[str, doctor.Finding]:
    return {finding.topic: finding for finding in found}


def test_a_machine_without_a_gpu_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "bad  " not in shown
    for topic in ("torch", "GPU", "DALI", "DeepSpeed", "apex", *doctor.CASES, "CUDA graph"):
        assert f" {topic}" in shown
    assert max(map(len, shown.splitlines())) < 120


def test_every_operation_is_checked_on_what_would_run() -> None:
    found = findings(doctor.compare_kernels())
    native = found["native kernels"].state == "ok"
    for name in doctor.CASES:
        assert found[name].state == "ok"
        assert found[name].sentence.startswith("native" if native else "reference")


def test_a_kernel_that_computes_wrongly_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = doctor.CASES["sgd_ema"]

    def wrong(device: torch.device) -> list[torch.Tensor]:
        return [value + 1e-3 * (dispatch._choice == "auto") for value in honest(device)]

    monkeypatch.setitem(doctor.CASES, "sgd_ema", wrong)
    monkeypatch.setitem(doctor.CASES, "student_objective", lambda device: [torch.full((), float("nan"))])
    assert main(["doctor"]) == 1
    assert "Doctor: student_objective, sgd_ema: see above." in capsys.readouterr().err


def test_a_kernel_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> list[torch.Tensor]:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setitem(doctor.CASES, "sgd_ema", fails)
    assert findings(doctor.compare_kernels())["sgd_ema"] == ("bad", "sgd_ema", "RuntimeError: no such instruction")


def test_a_kernel_that_fell_back_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "fallbacks", lambda: {"sgd_ema": "CompilationError: no ptxas"})
    found = findings(doctor.compare_kernels())
    assert found["sgd_ema"].state == "none" and "slower" in found["sgd_ema"].sentence
    assert "CompilationError: no ptxas" in found["sgd_ema"].sentence
    assert found["student_objective"].state == "ok"


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"optimizers": False}, "unrelated PyPI package"),
        ({"amp_c": False}, "without its CUDA extension"),
        ({}, "FusedLAMB"),
    ],
)
def test_the_wrong_apex_is_ignored_with_one_line(
    there: dict[str, bool], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_apex.installed(monkeypatch, tmp_path, **there)
    assert words in findings(doctor.examine_packages())["apex"].sentence


def test_what_is_missing_says_what_it_would_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed_version", lambda name: "")
    for name, finding in findings(doctor.examine_packages()).items():
        assert finding.state == "none"
        assert name == "apex" or doctor.WITHOUT[name] in finding.sentence
