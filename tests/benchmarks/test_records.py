"""Records and the tables that are made of them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.records import RESULTS, Record, RecordError, load, save
from benchmarks.summary import mean, paired, values
from benchmarks.tables import documents, main, render, update

ARMS = {"off": [50.0, 60.0, 55.0], "exact": [76.0, 88.5, 81.0]}


def experiment(**config: object) -> Record:
    rows = [{"arm": arm, "seed": s, "value": v} for arm, found in ARMS.items() for s, v in enumerate(found)]
    return Record("noisy", "experiment", rows, {"baseline": "off", "unit": " %", **config})


def timing() -> Record:
    def row(variant: str, seconds: float, speed: float) -> dict:
        quartiles = {f"{k}_{q}": v for k, v in (("cpu", seconds), ("speedup", speed)) for q in ("q1", "median", "q3")}
        return {"variant": variant, "n": 9, **quartiles, "base_bytes": 0, "peak_bytes": 2**21, "operations": 12}

    config = {"baseline": "joint", "rounds": 9, "clock": "cpu"}
    return Record("steps", "timing", [row("joint", 2.5, 1.0), row("split", 0.002, 1250.0)], config)


@pytest.mark.parametrize("record", [experiment(), timing()])
def test_a_record_comes_back_as_it_was_saved(tmp_path, record):
    assert save(record, tmp_path).name == f"{record.name}.json"
    assert load(record.name, tmp_path) == record
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"]


def test_a_list_of_numbers_takes_one_line(tmp_path):
    record = replace(experiment(), rows=[{"x": [0.5, -1e-9, 3.0], "text": "[1,  2]", "none": []}])
    lines = save(record, tmp_path).read_text().splitlines()
    assert '   "x": [ 0.5, -1e-09, 3.0 ],' in lines
    assert load(record.name, tmp_path) == record


def test_a_missing_record_is_a_sentence_that_names_those_there_are(tmp_path):
    save(experiment(), tmp_path)
    with pytest.raises(RecordError, match=r"no record 'nosy'.*there are: noisy"):
        load("nosy", tmp_path)


def test_a_name_that_leaves_the_folder_is_refused(tmp_path):
    with pytest.raises(RecordError, match="name is 1 to 64"):
        save(replace(experiment(), name="../x"), tmp_path)


def test_mean_and_standard_error_are_those_of_scipy():
    found = mean(ARMS["exact"])
    assert found.mean == pytest.approx(np.mean(ARMS["exact"]))
    assert found.error == pytest.approx(stats.sem(ARMS["exact"]))
    assert math.isnan(mean([1.0]).error)


def test_paired_interval_is_that_of_scipys_paired_t_test():
    rows = experiment().rows
    rows.reverse()  # seeds pair by number, not by position
    found = paired(rows, "exact", "off")
    expected = stats.ttest_rel(ARMS["exact"], ARMS["off"]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == 3


def test_seeds_that_only_one_arm_has_are_left_out_of_the_pairs():
    rows = [*experiment().rows, {"arm": "exact", "seed": 9, "value": 0.0}]
    assert paired(rows, "exact", "off").n == 3


def test_a_seed_that_is_there_twice_is_refused():
    rows = experiment().rows
    with pytest.raises(RecordError, match="has seed 0 twice"):
        values([*rows, rows[0]], "off")


def test_experiment_table_gives_means_and_paired_differences():
    text = render(experiment())
    assert "| off | 55.0 ± 2.9 % | 3 |  |" in text
    assert "| exact | 81.8 ± 3.6 % | 3 | +26.8 (+23.2 to +30.4) |" in text


def test_cases_are_compared_within_themselves():
    rows = [{**row, "case": case} for case in ("20", "50") for row in experiment().rows]
    rows[-1] = {**rows[-1], "value": 100.0}
    text = render(replace(experiment(), rows=rows))
    assert "| 20 | exact | 81.8" in text
    assert "| 50 | exact | 88.2" in text


def test_cases_stand_side_by_side_where_that_is_asked_for():
    rows = [{"case": case, "arm": "off", "seed": s, "value": 10.0 * s} for case in ("few", "many") for s in range(3)]
    rows.append({"case": "many", "arm": "exact", "seed": 0, "value": 7.0})
    rows.append({"case": "many", "arm": "exact", "seed": 1, "value": 9.0})
    table = render(Record("noisy", "experiment", rows, {"unit": " %", "seeds": 3}), how="across").splitlines()
    assert table[0] == "| mean ± standard error % | few | many |"
    assert table[2:4] == ["| off | 10.0 ± 5.8 | 10.0 ± 5.8 |", "| exact |  | 8.0 ± 1.0 |"]
    turned = render(Record("noisy", "experiment", rows, {"unit": " %", "seeds": 3}), how="down").splitlines()
    assert turned[0] == "| mean ± standard error % | off | exact |"
    assert turned[2:4] == ["| few | 10.0 ± 5.8 |  |", "| many | 10.0 ± 5.8 | 8.0 ± 1.0 |"]
    with pytest.raises(RecordError, match="no cases"):
        render(timing(), how="across")


def test_differences_from_an_arm_are_paired_within_each_case():
    rows = [{**row, "case": case} for case in ("20", "50") for row in experiment().rows]
    rows = [row for row in rows if (row["case"], row["arm"]) != ("50", "exact")]
    table = render(Record("some", "experiment", rows, {"seeds": 3}), how="minus off").splitlines()
    assert table[0] == "| minus off (95 % interval) | exact |"
    assert table[2:4] == ["| 20 | +26.8 (+23.2 to +30.4) |", "| 50 |  |"]


def test_timing_table_gives_time_speed_bytes_and_operators():
    text = render(timing())
    assert "| joint | 2.5 s (2.5 s to 2.5 s) | baseline | 2.0 MiB | 12 |" in text
    assert "| split | 2 ms (2 ms to 2 ms) | 1250.00x" in text


def test_every_table_says_where_its_numbers_are_from():
    record = timing()
    text = render(record)
    for expected in (record.commit[:9], record.created[:10], record.command, str(record.environment["torch"]), "n = 9"):
        assert expected in text


@pytest.fixture
def page(tmp_path: Path) -> Path:
    save(timing(), tmp_path)
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table:steps -->\nold\n<!-- /table -->\nafter\n")
    return path


def test_tables_are_rewritten_in_place_once_and_for_all(page):
    assert main(["--results", str(page.parent), str(page)]) == 0
    first = page.read_text()
    assert first.startswith("before\n<!-- table:steps -->\n| variant")
    assert first.endswith("<!-- /table -->\nafter\n")
    assert update(first, page.parent) == first


def test_check_fails_where_a_table_differs_and_writes_nothing(page, capsys):
    assert main(["--check", "--results", str(page.parent), str(page)]) == 1
    assert "page.md: a table differs" in capsys.readouterr().err
    assert "old" in page.read_text()
    main(["--results", str(page.parent), str(page)])
    page.write_text(page.read_text().replace("2.5 s", "1.5 s", 1))
    assert main(["--check", "--results", str(page.parent), str(page)]) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<!-- table:steps -->\n", "Table 'steps' has no"),
        ("<!-- table:a -->\n<!-- table:steps -->\n<!-- /table -->", "Table 'a' has no"),
        ("<!-- table:b -->\n<!-- /table -->", "no record 'b'"),
    ],
)
def test_a_marker_that_cannot_be_filled_is_a_sentence(page, text, sentence):
    with pytest.raises(RecordError, match=sentence):
        update(text, page.parent)


def test_tables_of_the_documentation_are_those_of_the_records():
    assert main(["--check"]) == 0, documents()


def test_every_record_in_the_repository_can_be_read_and_shown():
    for path in RESULTS.glob("*.json"):
        assert render(load(path.stem))
