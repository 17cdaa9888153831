"""A run's student as a folder that `timm.create_model("local-dir:...")` reads, with a model card."""

import json
from pathlib import Path
from typing import Any, Final

from torch import nn

from fastmpl.data.evaluation import framing_of
from fastmpl.errors import ConfigError
from fastmpl.run.classifier import Classifier
from fastmpl.run.tensor_file import encode_tensors
from fastmpl.untrusted import read_json_object

BYTES: Final = 255.0


def _timm_arguments(name: str, student: Classifier) -> dict[str, object]:
    import timm

    arguments: dict[str, object] = {"in_chans": student.image_shape[0]}
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        arguments["img_size"] = list(student.image_shape[1:])
    return arguments


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def make_card(student: Classifier, run: Path, name: str) -> str:
    """The model card: data, method, results and limits, as the run's own files have them."""
    config, found = student.config, run / "results.json"
    try:
        results = read_json_object(found)
    except (OSError, ValueError):
        results = {}
    scores = [
        f"| {network} | {split} | {accuracy:.4f} |"
        for network, splits in _mapping(results.get("last")).items()
        for split, accuracy in _mapping(splits).items()
        if isinstance(accuracy, int | float)
    ]
    lines = [
        "---",
        "license: unknown",
        "library_name: timm",
        "tags: [image-classification]",
        "---",
        f"# {run.resolve().name}",
        "",
        f"{name}, trained by fastmpl with the method `{config.method.name}` on `{config.data.source}` data: "
        f"{len(student.classes)} classes, images of {student.image_shape[-1]} pixels.",
        "",
        "| network | images | accuracy |",
        "|---|---|---:|",
        *scores,
        "",
        f"The accuracies are those of the last step. This file holds the {student.description}.",
        "",
        "Limits: it knows no other classes than these, and was measured on images like those it was trained on.",
        "The licence of the data decides the licence of these weights; fill it in above.",
    ]
    return "\n".join(lines) + "\n"


def write_timm_folder(student: Classifier, run: Path, path: Path) -> nn.Module:
    """Writes the student of `run` into the folder `path`; returns what timm reads from it, in evaluation mode.

    Raises ConfigError for a network that is not timm's.
    """
    name = student.model.removeprefix("timm:")
    if name == student.model:
        raise ConfigError(
            f'--to timm is for networks of timm, and this student is "{name}": use onnx, pt2 or safetensors.'
        )
    import timm

    assert student.normalisation is not None
    path.mkdir(parents=True, exist_ok=True)
    with (path / "model.safetensors").open("wb") as file:
        file.writelines(encode_tensors(student.module.state_dict(), {"format": "pt"}))
    framing = framing_of(student.config.data)
    constants = {key: [v / BYTES for v in values] for key, values in student.normalisation._asdict().items()}
    config = {
        "architecture": name,
        "num_classes": len(student.classes),
        "model_args": _timm_arguments(name, student),
        "label_names": list(student.classes),
        "pretrained_cfg": {
            "input_size": list(student.image_shape),
            "num_classes": len(student.classes),
            "label_names": list(student.classes),
            "crop_pct": framing.centre_crop,
            "interpolation": framing.interpolation,
            **constants,
        },
    }
    (path / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (path / "README.md").write_text(make_card(student, run, name), encoding="utf-8")
    module: nn.Module = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return module
