"""Numbers of records within sentences, and how old the records are."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.ages import age, files_behind
from benchmarks.environment import ROOT, run_git
from benchmarks.records import Record, RecordError, load, save
from benchmarks.values import fill_in

ROWS = {
    ("few", "off"): [50.0, 60.0],
    ("few", "exact"): [53.0, 65.0],
    ("many", "off"): [70.0, 70.0],
    ("many", "exact"): [71.0, 71.4],
}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    rows = [
        {"case": case, "arm": arm, "seed": seed, "value": value}
        for (case, arm), found in ROWS.items()
        for seed, value in enumerate(found)
    ]
    save(Record("noisy", "experiment", rows, {"baseline": "off", "unit": " %"}), tmp_path)  # type: ignore[arg-type]
    speed = {"whole": (2.0, 1.0, 800), "split, deferred": (1.1, 2.0, 200)}
    steps = [
        {"variant": name, "cpu_median": seconds, "speedup_median": gain, "peak_bytes": peak}
        for name, (seconds, gain, peak) in speed.items()
    ]
    save(Record("steps", "timing", steps, {"baseline": "whole", "clock": "cpu"}), tmp_path)  # type: ignore[arg-type]
    plain = [{"network": n, "step": s, "MB": f"{m}"} for n, s, m in (("a", "x", 1), ("a", "y", 3), ("b", "x", 9))]
    save(Record("plain", "table", plain, {}), tmp_path)  # type: ignore[arg-type]
    return tmp_path


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("mean:noisy; few; off", "55.0 ± 5.0"),
        ("gain:noisy; few; exact minus off", "4.0"),
        ("gain:noisy; few; off minus exact", "-4.0"),
        ("gain:noisy; few | many; exact minus off", "1.2 to 4.0"),
        ("gain:noisy; *; exact minus off", "1.2 to 4.0"),
        ("value:steps; split, deferred; time of whole", "0.50"),  # of the ratios within a round, not of the medians
        ("value:steps; split, deferred; memory of whole; .0%", "25%"),
        ("value:steps; whole; time of split, deferred; .1f", "1.8"),
        ("value:plain; a | y; MB", "3"),
        ("value:plain; b; MB of a | y; .1f", "3.0"),
    ],
)
def test_a_mark_is_filled_with_the_number_of_its_record(records: Path, mark: str, expected: str) -> None:
    assert (
        fill_in(f"It is <!-- {mark} -->old<!-- / --> more.", records)
        == f"It is <!-- {mark} -->{expected}<!-- / --> more."
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<!-- value:plain; a; MB --><!-- / -->", "has 2 rows with 'a'"),
        ("<!-- value:plain; b; GB --><!-- / -->", "has no column 'GB'"),
        ("<!-- value:plain; b; network of a | x --><!-- / -->", "'b' is not a number"),
        ("<!-- gain:noisy; none; exact minus off --><!-- / -->", "has no case 'none'"),
        ("<!-- gain:noisy; few; exact minus best --><!-- / -->", "no arm 'best'"),
        ("<!-- mean:noisy; few; off -->55", "no '<!-- / -->' after it"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_a_sentence(records: Path, text: str, sentence: str) -> None:
    with pytest.raises(RecordError, match=sentence):
        fill_in(text, records)


def test_the_files_behind_a_command_are_those_that_it_imports() -> None:
    files = {str(path.relative_to(ROOT)) for path in files_behind("benchmarks.bench_losses")}
    assert {"benchmarks/bench_losses.py", "kernels/fastmpl_kernels/__init__.py"} <= files
    assert any(path.startswith("kernels/csrc/") for path in files)
    assert "fastmpl/cli/completion.py" not in files


@pytest.mark.skipif(not run_git("rev-parse", "HEAD"), reason="needs the repository's history")
def test_a_record_of_another_code_names_what_has_changed(records: Path) -> None:
    made = replace(load("plain", records), command="python -m benchmarks.bench_losses")
    first = run_git("rev-list", "--max-parents=0", "HEAD").splitlines()[0]
    assert age(replace(made, commit=first)).changed
    assert age(replace(made, commit="0" * 40)).changed is None
