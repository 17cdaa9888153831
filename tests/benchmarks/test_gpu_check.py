"""The check of a GPU machine: without one it says so; its comparisons hold for the kernels of this CPU."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import kernel_rows, main
from fastmpl_kernels.library import available


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], tmp_path) == 3
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "needs a CUDA device" in said[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not available(), reason="the native kernels were not built: install a C++ compiler")
def test_every_kernel_is_compared_with_its_reference() -> None:
    rows = list(kernel_rows(torch.device("cpu"), "native", rounds=1, rows=12, classes=10, channels=16))
    assert [row["what"] for row in rows if row["dtype"] == "float32"] == [
        "batch_norm_act, forward and backward",
        "batch_norm_act, forward mode",
        "student_objective",
        "teacher_objective",
        "soft_cross_entropy",
        "sgd_ema",
        "global_norm",
    ]
    assert all(row["passed"] for row in rows), rows
