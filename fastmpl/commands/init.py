"""`fastmpl init`: writes a first configuration for a folder of pictures, with the reason beside each choice.

It reads file names and the size of some pictures, and times two steps; `fastmpl check` decodes every picture.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch

from fastmpl.commands.recipes import Recipe, choose_recipe, measure_seconds
from fastmpl.config import load
from fastmpl.config.load import write_new
from fastmpl.data.readers.tree import Tree, read_tree

_METHODS = {
    "uda": 'one network; "mpl" trains a teacher too, in three times the time',
    "mpl": 'a teacher that learns from its student; "uda" trains one network, faster',
}


class FirstConfig(NamedTuple):
    """The file that was written, and the seconds that its run takes on this machine."""

    path: Path
    seconds: float


def format_minutes(seconds: float) -> str:
    """`less than a minute`, `about 4 minutes`, `about 3 hours`."""
    if seconds < 60:
        return "less than a minute"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {round(minutes / 60)} hours"


def _explain_validation(tree: Tree, recipe: Recipe) -> str:
    if recipe.validation:
        return "a fifth of the rarest class, of each class: never trained on, to select a checkpoint by"
    untested = "" if len(tree.test.names) else "; without a test/ folder nothing measures the student"
    return f"the rarest class has {recipe.smallest_class} images, too few to hold any back{untested}"


def _format_line(key: str, value: str | int | float | bool | list[int], why: str = "") -> str:
    written = f"{key} = {json.dumps(value, ensure_ascii=False)}"  # of these types, JSON's form is TOML's
    return f"{written:24} # {why}" if why else written


def _format_network(recipe: Recipe, *, gpu: bool) -> list[str]:
    other = '"timm:NAME" is any network of timm' if gpu else 'small, for a CPU; wrn_28_2 or "timm:resnet50" suit a GPU'
    return [
        _format_line("model", recipe.model, other),
        _format_line("optimiser", recipe.optimiser),
        _format_line("lr", recipe.lr),
        _format_line("weight_decay", recipe.weight_decay),
    ]


def format_config(tree: Tree, recipe: Recipe, name: str, path: Path, *, gpu: bool) -> str:
    """The commented file, to be written to `path`."""
    sizes = [len(part.names) for part in (tree.labelled, tree.unlabelled, tree.test)]
    counts = "{} labelled, {} unlabelled, {} test".format(*sizes)
    if tree.trusted:
        counts += f", {len(tree.trusted.names)} trusted (for gold_correction, feedback or fine-tuning)"
    lines = [
        f"# A first run on the pictures in {json.dumps(str(tree.root), ensure_ascii=False)}: {len(tree.classes)} classes;",
        f"# images: {counts}.",
        f"#   fastmpl check {path}     does every image decode?",
        f"#   fastmpl train {path}     writes runs/{name}; `fastmpl train --help` lists the other keys",
        "[run]",
        _format_line("name", name),
        _format_line("steps", recipe.steps, "more are better until the accuracy stops rising"),
        _format_line("evaluate_every", max(1, recipe.steps // 8)),
        "",
        "[data]",
        _format_line("source", "folder"),
        _format_line("root", str(tree.root)),
        _format_line("labels", 0, "all labelled images"),
        _format_line("validation", recipe.validation, _explain_validation(tree, recipe)),
        _format_line(
            "image_size",
            recipe.size,
            f"pixels; the shorter side of a typical image has {recipe.median_side}",
        ),
        _format_line("batch_labelled", recipe.batch_labelled, "labelled images a step"),
        _format_line("batch_unlabelled", recipe.batch_unlabelled, "and unlabelled ones; more is better, and slower"),
        _format_line("flip", True, "false where a mirrored picture is another thing: text, digits, left and right"),
        _format_line("rand_augment", list(recipe.rand_augment), "[0, 0] where colours or geometry are the class"),
        _format_line("shift", recipe.shift, "largest shift of a view, as a share of the side"),
        _format_line("cutout", recipe.cutout, "the square that is cut out of the strong view, as a share of the side"),
        "",
        "[method]",
        _format_line("name", recipe.method, _METHODS[recipe.method]),
        "",
        *(["[teacher]", *_format_network(recipe, gpu=gpu), ""] if recipe.method == "mpl" else []),
        *([] if recipe.method == "mpl" else ["[feedback]", _format_line("kind", "off", '"exact" with "mpl"'), ""]),
        "[student]",
        *_format_network(recipe, gpu=gpu),
        _format_line("average", recipe.average, f"averages the weights over {round(1 / (1 - recipe.average))} steps"),
        "",
        "[uda]",
        _format_line("weight", recipe.uda_weight, "of the consistency between two views of an image"),
        _format_line("threshold", recipe.uda_threshold, "confidence from which an image counts"),
        _format_line("temperature", recipe.uda_temperature, "below 1 sharpens what the other view should say"),
        _format_line("ramp", recipe.uda_ramp, "steps over which the weight grows"),
    ]
    return "\n".join(lines) + "\n"


def _run_name(root: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", root.resolve().name)[:64].strip("._-")
    return name or "pictures"


def write_first_config(folder: str, output: Path | None, *, quick: bool = False) -> FirstConfig:
    """Writes a configuration for the pictures in `folder` to `output` (NAME.toml here), and times its steps.

    quick: a quarter of the steps. Raises DataError where the folder is not laid out as it should be, ConfigError where
    the file is there already.
    """
    tree, gpu = read_tree(folder), torch.cuda.is_available()
    name = _run_name(tree.root)
    output = output or Path(f"{name}.toml")
    text = format_config(tree, choose_recipe(tree, gpu=gpu, quick=quick), name, output, gpu=gpu)
    write_new(output, text)
    return FirstConfig(output, measure_seconds(load(output), len(tree.classes)))
