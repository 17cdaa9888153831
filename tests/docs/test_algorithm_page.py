"""docs/algorithm.md names the function of each formula; a reader must find it there."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "algorithm.md"
NAMES = sorted(set(re.findall(r"`(fastmpl(?:_kernels)?\.[\w.]+)`", PAGE.read_text())))


def test_each_formula_has_its_function() -> None:
    rows = PAGE.read_text().split("## From formula to code")[1].split("\n## ")[0].split("| what | where |")[1]
    cells = [line.strip("|").split("|")[-1] for line in rows.splitlines() if line.startswith("| ")]
    assert len(cells) >= 8
    assert [cell for cell in cells if not re.search(r"`fastmpl", cell)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_page_is_one_of_the_program(name: str) -> None:
    assert resolve_name(name) is not None
