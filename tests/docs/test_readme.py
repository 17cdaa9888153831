"""What the documentation says is there, is: every path exists, every number is a record's."""

import re
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.records import RESULTS
from fastmpl import __version__

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_the_readme_is_short_and_its_first_commands_stand_near_the_top() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    top = "\n".join(lines[:25])
    assert "make train" in top and "make test" in top and "pip install" in top


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: path.name)
def test_every_link_leads_to_a_file(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", [ROOT / "CONTRIBUTING.md", *tables.documents()], ids=lambda path: path.name)
def test_every_path_that_a_sentence_names_exists(path: Path) -> None:
    names = re.findall(r"`((?:fastmpl|tests|benchmarks|kernels|launch|docs)/[\w./-]+)`", path.read_text())
    assert [name for name in names if "NAME" not in name and not (ROOT / name).exists()] == []


def test_every_path_of_the_tree_exists() -> None:
    tree = README.read_text().split("## The tree")[1].split("```")[1]
    parents: list[str] = []
    for line in tree.strip().splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        assert (ROOT / "/".join(parents)).exists(), line


def test_every_table_is_what_its_record_says() -> None:
    assert tables.main(["--check"]) == 0


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_was_made_by_a_command_of_the_repository(path: Path) -> None:
    command = tables.load(path.stem).command
    module = re.search(r"-m (benchmarks\.[\w.]+)", command)
    assert module, command
    assert (ROOT / (module[1].replace(".", "/") + ".py")).is_file()


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
