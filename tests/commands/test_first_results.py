"""What `fastmpl init` writes for fifty labelled pictures trains, on a CPU, to a student that is worth keeping."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fastmpl import cli
from fastmpl.commands.recipes import choose_recipe
from fastmpl.data.readers.tree import read_tree
from tests import shapes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_configuration_of_fifty_pictures_learns_most_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shapes.make(tmp_path / "shapes")
    assert cli.main(["init", "shapes"]) == 0
    assert cli.main(["train", "shapes.toml"]) == 0
    results = json.loads(Path("runs/shapes/results.json").read_text())
    assert results["last"]["average"]["test"] > 0.72  # two seeds by hand: 80.7 and 78.7 %


@pytest.mark.parametrize(("labelled", "unlabelled"), [(3, 0), (11, 7), (40, 400)])
def test_a_batch_leaves_room_for_pictures_that_cannot_be_decoded(
    labelled: int, unlabelled: int, tmp_path: Path
) -> None:
    for part, images in (("labelled/a", labelled), ("labelled/b", labelled), ("unlabelled", unlabelled)):
        (tmp_path / part).mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", (8, 8)).save(tmp_path / part / f"{number}.png")
    found = choose_recipe(read_tree(str(tmp_path)), gpu=False)
    left = 2 * labelled - found.validation
    assert 2 <= found.batch_labelled == min(64, left - -(-left // 10))
    assert 2 <= found.batch_unlabelled < (unlabelled or left)
