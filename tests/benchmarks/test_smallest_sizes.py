"""Every benchmark that no other test runs makes its record, at the smallest sizes, with the columns of the committed one.

A benchmark takes parts of the trainer by name; one that is not run is found broken when somebody needs its figures.
"""

import importlib
import sys
from pathlib import Path

import pytest

from benchmarks.records import Record, load

BRIEF = {
    "bench_batch_norm": "--rounds 1",
    "bench_features": "--rounds 1",
    "bench_listing": "--files 30000 --folder {tmp}",
    "bench_loader": "--files 8 --batch 4 --batches 1 --rounds 1 --threads 1",
    "bench_optimiser": "--rounds 1",
    "bench_store": "--rows 20000 --rounds 1 --folder {tmp}",
    "compare_rand_augment": "",
}
LONGER = {
    "bench_launch": "--runs 1 --steps 2",
    "bench_losses": "--rounds 1 --classes 10",
    "bench_sharding": "",
    "bench_zero": "--rounds 1",
    "compile_facts": "",
}


def columns(record: Record) -> set[frozenset[str]]:
    return {frozenset(row) for row in record.rows}


def make_records(name: str, arguments: str, folder: Path, patch: pytest.MonkeyPatch) -> list[Record]:
    """The records that a benchmark would save."""
    module = importlib.import_module(f"benchmarks.{name}")
    made = list[Record]()

    def keep(record: Record) -> str:
        made.append(record)
        return record.name

    patch.setattr(module, "save", keep)
    patch.setattr(module, "keep_memory", lambda module: None, raising=False)  # it would start the process again
    patch.setattr(sys, "argv", [name, *arguments.format(tmp=folder).split()])
    assert not module.main()
    return made


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*BRIEF.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in LONGER.items())],
)
def test_a_benchmark_makes_its_record(
    name: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_records(name, arguments, tmp_path, monkeypatch)
    assert made
    for record in made:
        assert columns(record) == columns(load(record.name)), record.name
