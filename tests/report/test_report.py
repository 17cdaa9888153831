"""A report tells what is in the folder, whatever is in the folder, and needs and runs nothing else."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from fastmpl.config import Config, save
from fastmpl.report import ArmResult, Comparison, write_comparison, write_report
from fastmpl.report.accuracy_chart import spread
from fastmpl.report.curve_charts import average_in_bins
from fastmpl.report.drawing import COLOUR, ROLES, draw, percent_axis
from fastmpl.telemetry.metrics import Log
from fastmpl.telemetry.metrics_file import FILE, Evaluation
from tests.report.sample import FEW, FOLDER, HOSTILE, NOISY, write_sample

STYLE = (Path(__file__).parents[2] / "fastmpl/report/templates/style.css").read_text()


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.text += " "
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(write_sample(tmp_path_factory.mktemp("runs") / FOLDER)))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_comparison(tmp_path_factory.mktemp("tables") / "tables.html", HOSTILE, [FEW, NOISY]))


@pytest.fixture(params=["run", "comparison"])
def page(request: pytest.FixtureRequest) -> Page:
    found: Page = request.getfixturevalue(request.param)
    return found


def test_a_hostile_name_is_shown_and_never_run(page: Page) -> None:
    assert "script" not in page.tags
    assert "<script" not in page.source
    assert "<script>alert(1)" in page.text


def test_a_page_has_no_handlers_and_asks_for_nothing_from_elsewhere(page: Page) -> None:
    names = {name for name, _ in page.attributes}
    assert [name for name in names if name.startswith("on") or name in ("srcset", "action", "data")] == []
    assert all(re.match("data:image/(png|jpeg);base64,", value) for name, value in page.attributes if name == "src")
    assert all(value.startswith("#") for name, value in page.attributes if name.endswith("href"))
    assert not {"iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert re.findall(r"@import|url\((?!#)", page.source) == []
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_no_two_elements_of_a_page_have_the_same_name(page: Page) -> None:
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))


def test_every_colour_of_a_picture_is_one_of_the_page(page: Page) -> None:
    assert [colour for colour in COLOUR.values() if colour in page.source] == []
    for role in set(re.findall(r"var\(--(\w+)\)", page.source)):
        assert STYLE.count(f"--{role}:") == 2, f"{role} has no value in light and in dark"


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.1)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_colour_can_be_read(scheme: int) -> None:
    value = {name: re.findall(rf"--{name}: (#\w{{6}})", STYLE)[scheme] for name in [*ROLES, "raised", "warning"]}
    for name in {*ROLES, "warning"} - {"grid", "surface"}:
        for ground in ("surface", "raised"):
            low, high = sorted((luminance(value[name]), luminance(value[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_the_picture_comes_first(run: Page) -> None:
    assert run.source.index("<svg") < run.source.index("<table")


def test_last_and_selected_results_stand_side_by_side(run: Page) -> None:
    assert re.search(r"average, last 3,000 90\.2.% ± 1\.7 88\.9.% ± 1\.4", run.text)
    assert re.search(r"average, selected on validation 2,750 90\.8.% ± 1\.7 88\.6.% ± 1\.4", run.text)
    assert re.search(r"student, fine-tuned – 89\.4.% ± 1\.8 88\.2.%", run.text)


def test_nothing_is_said_of_a_selection_that_was_not_made(run: Page, tmp_path: Path) -> None:
    assert "chosen on the validation images" in run.text
    folder = write_sample(tmp_path / "digits")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"selected": None}))
    assert "chosen on the validation images" not in Page(write_report(folder)).text


def test_what_differs_from_the_defaults_is_listed_and_nothing_else(run: Page) -> None:
    listed = re.findall(r'<tr><th scope="row"><code>(.*?)</code>', run.source)
    assert listed == ["run.name", "data.source", "data.root", "data.labels"]


def test_the_whole_configuration_is_in_the_page(run: Page) -> None:
    assert 'name = "digits"' in run.text
    assert "zero_stage = 1" in run.text


def test_the_numbers_at_the_ends_of_the_curves_are_the_last_evaluations(tmp_path: Path) -> None:
    with Log(tmp_path, loggers=[]) as log:
        for step, accuracy in ((10, 0.25), (20, 0.625)):
            log.evaluation(Evaluation(step, "train", "student", "test", accuracy, 1.0, 100))
    assert re.findall(r">([\d.]+ %)</text>", Page(write_report(tmp_path)).source)[-1] == "62.5 %"


def test_what_was_zero_throughout_is_named_and_not_drawn(tmp_path: Path) -> None:
    with Log(tmp_path, loggers=[]) as log:
        log.train(50, {"student_loss": 1.0, "feedback": 0.0}, seconds=1.0, images_per_second=10.0, waiting=0.0)
        log.train(100, {"student_loss": 0.5, "feedback": 0.0}, seconds=2.0, images_per_second=10.0, waiting=0.0)
    page = Page(write_report(tmp_path))
    assert "zero throughout or not measured: feedback," in page.text
    assert page.source.count("<svg") == 2  # losses, speed


def test_a_folder_with_nothing_in_it_still_gets_a_report(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert "config.toml cannot be read" in page.text
    assert "has not ended" in page.text
    assert "Nothing was evaluated yet" in page.text


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "null", '{"last": "student"}', '{"last": {"student": 3}, "selected": {"step": "x"}}', "\udcff"],
)
def test_results_of_another_shape_do_not_stop_a_report(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "<h1>" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "train", "step": None, "student_loss": "x"},
        {"kind": "train", "step": 10**400, "student_loss": 1.0},
        {"kind": "evaluation", "step": "x", "network": "student", "split": "test"},
        {"kind": "evaluation", "step": 1, "network": ["student"], "split": {}},
        {"kind": "evaluation", "step": 1, "network": "student", "split": "test", "accuracy": None},
        {"kind": HOSTILE, "step": 1},
    ],
)
def test_metrics_of_another_shape_do_not_stop_a_report(tmp_path: Path, line: dict[str, object]) -> None:
    (tmp_path / FILE).write_text(json.dumps(line) + "\n")
    assert "<h1>" in write_report(tmp_path).read_text()


def test_a_configuration_of_another_version_is_shown_with_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[student]\nstudnet = 1\n")
    page = Page(write_report(tmp_path))
    assert "unknown key 'student.studnet'" in page.text
    assert "studnet = 1" in page.text


def test_versions_recorded_by_the_run_are_those_shown(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"versions": {"torch": "9.8.7"}}))
    page = Page(write_report(tmp_path))
    assert "torch 9.8.7" in page.text
    assert "machine that wrote this page" not in page.text


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert [path.name for path in folder.glob("*.tmp")] == []


def test_a_long_run_has_a_short_page(tmp_path: Path) -> None:
    save(Config.model_validate({}), tmp_path / "config.toml")
    lines = ({"kind": "train", "step": s, "student_loss": 1 + s % 7, "student_norm": 2 + s % 5} for s in range(20_000))
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert write_report(tmp_path).stat().st_size < 150_000


def test_thinning_keeps_the_mean_and_the_gaps() -> None:
    xs = [float(i) for i in range(1000)]
    _, ys = average_in_bins(xs, [i % 10 for i in range(1000)], most=100)
    assert ys == [4.5] * 100
    _, ys = average_in_bins(xs, [math.nan if i == 500 else 1.0 for i in range(1000)], most=100)
    assert [i for i, y in enumerate(ys) if math.isnan(y)] == [50]


def test_few_points_are_drawn_as_they_are() -> None:
    assert average_in_bins([1, 2], [3, 4]) == ([1, 2], [3, 4])
    assert average_in_bins([], []) == ([], [])


def test_labels_are_moved_apart_and_keep_their_order() -> None:
    assert spread([0.9, 0.5, 0.91], gap=0.05) == pytest.approx([0.9, 0.5, 0.95])


def test_a_name_with_dollars_is_no_formula() -> None:
    svg = draw("a", (3, 2), lambda axes: axes.set_title(r"$\alpha$ & <b>") and None)
    assert r">$\alpha$ &amp; &lt;b&gt;</text>" in svg


def test_a_description_cannot_leave_its_attribute() -> None:
    svg = draw('"><script>\\1', (3, 2), lambda axes: None)
    assert r'aria-label="&#34;&gt;&lt;script&gt;\1"' in svg


def test_every_seed_is_a_dot_and_a_number(comparison: Page) -> None:
    assert "85.8 88.4 87.2" in comparison.text
    plots = comparison.source.split("<svg")[1:]
    assert [plot.count('style="fill: var(--student); fill-opacity') for plot in plots] == [9, 6]


def test_the_difference_is_paired_and_against_the_named_arm(comparison: Page) -> None:
    assert "Minus MPL, feedback off" in comparison.text
    assert re.search(r"MPL, exact feedback 87\.1.% ± 0\.8 \+1\.3 \[\+0\.6, \+2\.0\]", comparison.text)


def test_one_seed_shows_a_difference_without_an_interval(tmp_path: Path) -> None:
    table = Comparison("t", "c", (ArmResult("off", (0.5,)), ArmResult("exact", (0.75,))), "d")
    page = Page(write_comparison(tmp_path / "page.html", "one seed", [table]))
    assert "exact 75.0 % +25.0 75.0" in page.text


def test_arms_with_other_seeds_are_not_subtracted(tmp_path: Path) -> None:
    table = Comparison(
        "t", "c", (ArmResult("off", (0.5, 0.6)), ArmResult("exact", (0.75,)), ArmResult("none", ())), "d"
    )
    page = Page(write_comparison(tmp_path / "page.html", "seeds", [table]))
    assert "exact 75.0 % – 75.0" in page.text


def test_comparing_with_an_arm_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no arm is called 'of'"):
        write_comparison(tmp_path / "page.html", "t", [FEW._replace(against="of")])
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 0.9), (0.871, 0.884), (0.9, 0.9005), (0.5, 0.5)])
def test_no_two_labels_of_an_axis_are_equal(low: float, high: float) -> None:
    labels: list[str] = []

    def paint(axes: Axes) -> None:
        axes.set_ylim(low - 1e-4, high + 1e-4)
        percent_axis(axes.yaxis)
        labels.extend(label.get_text() for label in axes.get_yticklabels())

    draw("a description", (3.6, 2.0), paint)
    assert len(labels) > 2 and len(set(labels)) == len(labels)
    assert high - low < 0.5 or all("." not in label for label in labels)
