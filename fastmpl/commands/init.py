"""`fastmpl init`: a first configuration for a user's folder of pictures, with the reason beside each choice.

Only file names and the size of some images are looked at; `fastmpl check` looks at every image.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from fastmpl.config import load
from fastmpl.data.errors import DataError
from fastmpl.data.files.decode import FORMATS
from fastmpl.data.readers.tree import Tree, read_tree
from fastmpl.errors import ConfigError, StorageError

SIZES: Final = (32, 48, 64, 96, 128, 160, 192, 224)
SMALL: Final = 64  # pixels up to which a CPU can train in hours, and a Wide ResNet suits
LOOKED_AT: Final = 200  # images whose size is read


class Recipe(NamedTuple):
    """What is written into the file, and what it was guessed from."""

    typical: int  # shorter side of the images, in pixels
    size: int
    smallest: int  # labelled images of the rarest class
    validation: int
    batch_labelled: int
    batch_unlabelled: int
    model: str


def median_side(root: Path, names: Sequence[str]) -> int:
    """The median of the shorter sides of up to 200 images, evenly chosen; 0 where none can be opened."""
    sides = []
    for name in names[:: max(1, len(names) // LOOKED_AT)]:
        try:
            with Image.open(root / name, formats=FORMATS) as image:
                sides.append(min(image.size))
        except Exception:  # a decoder may raise anything on damaged bytes; `fastmpl check` lists such files
            continue
    return int(median(sides)) if sides else 0


def choose_recipe(tree: Tree, *, gpu: bool) -> Recipe:
    """Settings that suit the number and size of the images, and whether there is a GPU."""
    counts = np.bincount(tree.labelled.labels, minlength=len(tree.classes)).tolist()
    if not all(counts):
        empty = tree.root / "labelled" / tree.classes[counts.index(0)]
        raise DataError(f"{empty} has no images. Put images there, or remove the folder.")
    typical = median_side(tree.root, tree.labelled.names)
    if not typical:
        raise DataError(f"none of the files in {tree.root / 'labelled'} can be read as an image.")
    size = max((size for size in SIZES if size <= (typical if gpu else min(typical, SMALL))), default=SIZES[0])
    held_back = min(min(counts) // 5, 100)
    trained = sum(counts) - held_back * len(counts)
    labelled = max(2, min(64, trained))
    return Recipe(
        typical=typical,
        size=size,
        smallest=min(counts),
        validation=held_back * len(counts),
        batch_labelled=labelled,
        batch_unlabelled=min((7 if gpu else 2) * labelled, len(tree.unlabelled.names) or trained),
        model="conv" if not gpu else "wrn_28_2" if size <= SMALL else "timm:resnet50",
    )


def _explain_validation(tree: Tree, found: Recipe) -> str:
    if found.validation:
        return "a fifth of the rarest class, of each class: never trained on, to select a checkpoint by"
    told = "" if tree.test.names else "; without a test/ folder nothing will say how good the student is"
    return f"the rarest class has {found.smallest} images, too few to hold any back{told}"


def _format_line(key: str, value: str | int | float | bool | list[int], why: str = "") -> str:
    written = f"{key} = {json.dumps(value, ensure_ascii=False)}"  # of these types, JSON's form is TOML's
    return f"{written:24} # {why}" if why else written


def format_config(tree: Tree, found: Recipe, name: str, *, gpu: bool) -> str:
    """The commented file."""
    root = json.dumps(str(tree.root), ensure_ascii=False)
    sizes = [len(part.names) for part in (tree.labelled, tree.unlabelled, tree.test)]
    counts = "{} labelled, {} unlabelled, {} test".format(*sizes)
    if tree.trusted:
        counts += f', {len(tree.trusted.names)} trusted (used where [feedback] has images = "trusted")'
    other = '"timm:NAME" for any network of timm' if gpu else 'small, for a CPU; wrn_28_2 or "timm:resnet50" on a GPU'
    lines = [
        f"# Meta Pseudo Labels on the pictures in {root}: {len(tree.classes)} classes;",
        f"# images: {counts}.",
        f"#   fastmpl check {name}.toml     does every image decode?",
        f"#   fastmpl train {name}.toml     writes runs/{name}; `fastmpl train --help` lists the other keys",
        "[run]",
        _format_line("name", name),
        _format_line("steps", 3000),
        _format_line("evaluate_every", 250),
        "",
        "[data]",
        _format_line("source", "folder"),
        _format_line("root", str(tree.root)),
        _format_line("labels", 0, "all of labelled/"),
        _format_line("validation", found.validation, _explain_validation(tree, found)),
        _format_line("image_size", found.size, f"the shorter side of a typical image has {found.typical} pixels"),
        _format_line("batch_labelled", found.batch_labelled, "labelled images a step"),
        _format_line("batch_unlabelled", found.batch_unlabelled, "and unlabelled ones; more is better, and slower"),
        _format_line("flip", True, "false where a mirrored picture is another thing: text, digits, left and right"),
        _format_line("rand_augment", [2, 10], "[0, 0] where colours or geometry are the class"),
        _format_line("cutout", 0.5, "the square that is cut out of the strong view, as a share of the side"),
        "",
        "[teacher]",
        _format_line("model", found.model, other),
        "",
        "[student]",
        _format_line("model", found.model),
        _format_line("average", 0.995, "decay of the average of the weights: of about 200 steps"),
        "",
        "[uda]",
        _format_line(
            "weight", 8.0, "consistency of the teacher between two views of an image; 1.0 for very few images"
        ),
    ]
    return "\n".join(lines) + "\n"


def _run_name(root: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", root.resolve().name)[:64].strip("._-")
    return name or "pictures"


def write_first_config(folder: str, output: Path | None) -> Path:
    """Writes a configuration for the pictures in `folder` to `output` (NAME.toml here); gives its path.

    Raises DataError where the folder is not laid out as it should be, ConfigError where the file is there already.
    """
    import torch

    tree, gpu = read_tree(folder), torch.cuda.is_available()
    name = _run_name(tree.root)
    text = format_config(tree, choose_recipe(tree, gpu=gpu), name, gpu=gpu)
    output = output or Path(f"{name}.toml")
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{output} exists already. Remove it, or name another file by --output.") from error
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}. Name another file by --output.") from error
    load(output)
    return output
