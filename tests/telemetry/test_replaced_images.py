"""The record of images that could not be read: of all ranks, in the order of steps, and as if nothing had stopped it."""

import json
from pathlib import Path

from fastmpl.data.view_stream import Replacement
from fastmpl.distributed.ranks import ALONE
from fastmpl.telemetry.replaced_images import FILE, ReplacedImagesFile

NAMES = ["a.jpg", "<b>.jpg", "c\x1b.jpg"]


def read_record(folder: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["file"]) for line in map(json.loads, (folder / FILE).read_text().splitlines())]


def test_each_is_written_once_and_the_first_is_told(tmp_path: Path) -> None:
    replaced, told = ReplacedImagesFile(tmp_path, ALONE, NAMES), []
    replaced.write(told.append)
    assert told == [] and not (tmp_path / FILE).exists()
    replaced.add(3, [Replacement(0, 2, 0, "gone"), Replacement(1, 1, 0, "gone")])
    replaced.add(4, [])
    replaced.write(told.append)
    replaced.write(told.append)
    assert read_record(tmp_path) == [(3, "<b>.jpg"), (3, "c\x1b.jpg")]
    assert len(told) == 1
    assert "<b>.jpg could not be read at step 3 (gone) and was replaced by a.jpg, as was 1 other" in told[0]
    assert "\x1b" not in told[0]


def test_a_resumed_run_forgets_what_came_after_its_checkpoint_and_what_a_crash_tore(tmp_path: Path) -> None:
    replaced = ReplacedImagesFile(tmp_path, ALONE, NAMES)
    replaced.truncate_after(5)
    for step in (4, 5, 6):
        replaced.add(step, [Replacement(0, 1, 0, "gone")])
    replaced.write(lambda line: None)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 5, "fi')
    ReplacedImagesFile(tmp_path, ALONE, NAMES).truncate_after(5)
    assert read_record(tmp_path) == [(4, "<b>.jpg"), (5, "<b>.jpg")]
