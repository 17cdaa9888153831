"""What a user is told of the data before training: counts that add up, and labelled images that stand in for others."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from fastmpl.data.build import build
from fastmpl.data.inventory import NAMED, Inventory, Problem, account_line, add_inventories, fold_problems
from fastmpl.data.prepare import prepare
from fastmpl.data.remarks import account_of, split_remarks
from tests.pictures import make

Make = Callable[..., SimpleNamespace]


def test_problems_beyond_the_first_of_a_reason_are_counted() -> None:
    many = [Problem(f"{number}.txt", "no image") for number in range(25)]
    folded = fold_problems([*many, Problem("a.jpg", "odd", used=True)])
    assert len(folded) == NAMED + 2
    assert folded[-1] == Problem("10.txt", "no image", count=15)
    assert sum(problem.count for problem in fold_problems([*folded, *many]) if not problem.used) == 50


def test_the_account_is_one_line_of_counts_that_add_up() -> None:
    problems = [
        Problem("a", "hidden", count=5),
        Problem("b", "damaged: x"),
        Problem("c", "damaged: y"),
        Problem("d", "odd", True),
    ]
    inventory = add_inventories([Inventory(10, 2), Inventory(7)])
    assert account_line(inventory, 8, problems) == (
        "17 entries: 8 images, 2 that hold images, labels or lists, 7 left out (5: hidden; 2: damaged)"
    )
    assert account_line(Inventory(3), 3, []) == "3 entries: 3 images, 0 left out"


def test_labelled_images_that_stand_in_for_unlabelled_ones_are_told(tmp_path: Path, settings: Make) -> None:
    root = make(tmp_path / "pictures", labelled=4, unlabelled=2, test=0)
    section = settings(source="folder", root=str(root), labels=0, validation=3, batch_labelled=4, batch_unlabelled=4)
    prepared = prepare(section, seed=0)
    assert split_remarks(prepared.arrays, prepared.split) == []
    for path in (root / "unlabelled").rglob("*"):
        if path.is_file():
            path.unlink()
    prepared = prepare(section, seed=0)
    (remark,) = split_remarks(prepared.arrays, prepared.split)
    assert remark == "there are no unlabelled images: the 9 labelled ones stand in for them, without labels"
    assert build(section, seed=0).remarks() == [remark]


def test_the_start_of_a_run_tells_what_is_left_out(tmp_path: Path, settings: Make) -> None:
    root = make(tmp_path / "pictures", labelled=4, unlabelled=2, test=0)
    (root / "unlabelled" / "notes.txt").touch()
    section = settings(source="folder", root=str(root), labels=0, validation=3, batch_labelled=4, batch_unlabelled=4)
    (remark,) = build(section, seed=0).remarks()
    assert remark.startswith("19 entries: 18 images, 1 left out (1: .txt is no image format")
    assert remark.endswith("`fastmpl check` names them")


def test_a_built_in_set_has_no_account(settings: Make) -> None:
    assert account_of(prepare(settings(), seed=0).arrays) == []
