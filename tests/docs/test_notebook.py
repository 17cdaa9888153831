"""The notebook runs from its first cell to its last, and was saved with what its cells print."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "first_student.ipynb"


def read_cells() -> list[dict[str, Any]]:
    """The cells of code."""
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_every_cell_was_run_and_none_failed() -> None:
    cells = read_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and all(output["output_type"] in ("stream", "execute_result") for output in outputs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cells_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in read_cells():
        source = "".join(cell["source"])
        if source.startswith("!fastmpl "):
            subprocess.run([sys.executable, "-m", *source[1:].split()], check=True)
        else:
            exec(compile(source, NOTEBOOK.name, "exec"), names)
    assert names["run"].evaluate()["test"].accuracy > 0.6
    assert (tmp_path / "runs/pictures/student_export.safetensors").is_file()
