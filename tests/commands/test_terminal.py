"""Transcripts of train, status, predict, check and ablate are golden: piped, on 80 and 40 columns, and in the C locale."""

from pathlib import Path

import pytest

from tests.commands.terminal import GOLDEN, KINDS, final_screen, make_place, normalise, record

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_transcript_is_as_recorded(kind: str, tmp_path: Path) -> None:
    place = make_place(tmp_path)
    # where the wording is meant to change: python -m tests.commands.terminal
    assert normalise(record(kind, place), place) == (GOLDEN / f"{kind}.txt").read_text(encoding="utf-8")


def test_lines_of_a_slow_machine_are_left_out(tmp_path: Path) -> None:
    slow = "piped 8/20 | speed 9 images/s | time left 0:12 | loss 1.5\npiped 20/20 | speed 9 images/s | loss 1.2\n"
    assert normalise(slow, tmp_path) == "piped 20/20 | speed # images/s | loss #.#\n"


def test_the_final_screen_is_what_a_terminal_shows() -> None:
    assert final_screen("one\r\ntwo\r\x1b[2K\x1b[1A\x1b[2Kthree\r\nfour") == "three\nfour"
    assert final_screen("\x1b[1;32mgreen\x1b[0m\x1b[?25l") == "green"
