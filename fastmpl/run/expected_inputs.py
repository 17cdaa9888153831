"""What a pretrained network expects of its images: constants, size, crop and interpolation, written into the configuration.

Keys that leave them open take what the weights say: timm's data configuration of the network, `pretrained_cfg` in the
config.json of a folder in timm's form, or the run that the weights are of. The configuration in the run's folder holds
the values, so that training goes on, `predict`, `evaluate` and `export` need the weights' source no more.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fastmpl.config import Config, NetworkConfig, load, trained_optimisers
from fastmpl.errors import ConfigError
from fastmpl.run.classifier import load_classifier
from fastmpl.run.input_constants import BYTES, UNSET

SIZE, CROP = 28, 0.875  # where no network says one

Constants = tuple[float, float, float]


class ExpectedInputs(NamedTuple):
    """How a network was shown its images. `mean` and `std` are of pixels in [0, 1]."""

    mean: Constants
    std: Constants
    size: int
    centre_crop: float
    interpolation: Literal["bilinear", "bicubic"]


def settle_inputs(config: Config, run: Path | None = None) -> Config:
    """`config` with a value for every key of the inputs that it leaves to its pretrained networks.

    Size, crop and interpolation are the student's where its weights say them, else the teacher's. run: the folder of a run
    that may have been started already: its values serve, because the source of the weights may be gone. Raises ConfigError
    where the source cannot be read.
    """
    sections = {role: getattr(config, role) for role in ("student", "teacher") if role in trained_optimisers(config)}
    roles = [role for role, section in sections.items() if section.pretrained]
    data = config.data
    if not roles and data.image_size and data.centre_crop:
        return config
    before = _read_config(run)
    found = {role: _recall(before, role, config) or read_expected_inputs(sections[role]) for role in roles}
    named = next((inputs for inputs in found.values() if inputs is not None), None)
    changes: dict[str, dict[str, Any]] = {
        role: {"mean": inputs.mean, "std": inputs.std}
        for role, inputs in found.items()
        if inputs is not None and sections[role].std == UNSET
    }
    changes["data"] = {
        "image_size": data.image_size or (named.size if named else SIZE),
        "centre_crop": data.centre_crop or (named.centre_crop if named else CROP),
    }
    if roles and data.interpolation == "auto":
        changes["data"]["interpolation"] = named.interpolation if named else "bilinear"
    tree = config.model_dump()
    return Config.model_validate({name: section | changes.get(name, {}) for name, section in tree.items()})


def describe_inputs(config: Config) -> list[str]:
    """A sentence for each pretrained network on the images that it is shown."""
    said = []
    for role in trained_optimisers(config):
        section: NetworkConfig = getattr(config, role)
        if section.pretrained and section.std != UNSET:
            mean, std = (" ".join(f"{value:.3g}" for value in part) for part in (section.mean, section.std))
            size = config.data.image_size
            said.append(
                f"{role}: images of {size} x {size} pixels, normalised by mean {mean} and deviation {std}, as its weights "
                f"expect ({role}.mean and {role}.std)."
            )
    return said


def read_expected_inputs(section: NetworkConfig) -> ExpectedInputs | None:
    """What the pretrained weights of a network say of its images; None where they say nothing, as a file alone does.

    A file for a network of timm is taken to be trained as timm's own weights of that network are.
    """
    source = Path(section.pretrained)
    if section.pretrained != "hub" and (source / "config.toml").is_file():
        return _of_run(source)
    if not section.model.startswith("timm:"):
        return None
    import timm  # takes a second
    from timm.data import resolve_data_config

    said = _read_timm_folder(source, section) if (source / "config.json").is_file() else None
    known: Any = timm.get_pretrained_cfg(section.model.removeprefix("timm:"))
    if said is None and known is None:
        return None
    cfg = {key: value for key, value in known.to_dict().items() if value is not None} if said is None else said
    try:
        facts = resolve_data_config(pretrained_cfg=cfg)
        return ExpectedInputs(
            _three(facts["mean"]),
            _three(facts["std"]),
            int(facts["input_size"][-1]),
            float(facts["crop_pct"]),
            "bicubic" if facts["interpolation"] == "bicubic" else "bilinear",
        )
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(
            f"{source / 'config.json'} does not say how images are normalised ({error}): correct its pretrained_cfg."
        ) from error


def _of_run(folder: Path) -> ExpectedInputs | None:
    held = load_classifier(folder)
    if held.normalisation is None:
        return None
    mean, std = (_three([value / BYTES for value in part]) for part in held.normalisation)
    data = held.config.data
    cubic = data.interpolation == "bicubic"
    return ExpectedInputs(mean, std, held.image_shape[-1], data.centre_crop, "bicubic" if cubic else "bilinear")


def _read_timm_folder(folder: Path, section: NetworkConfig) -> dict[str, Any]:
    """`pretrained_cfg` of a folder in timm's form, whose keys may also stand at the top."""
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        known = facts.get("pretrained_cfg", facts)
        return {str(key): value for key, value in known.items() if value is not None}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} cannot be read: fetch the folder again, or name its file of weights alone."
        ) from error


def _three(values: Any) -> Constants:
    """A constant for each of three channels; one constant is of all three."""
    numbers = [float(value) for value in values]
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def _read_config(run: Path | None) -> Config | None:
    return load(run / "config.toml") if run is not None and (run / "config.toml").is_file() else None


def _recall(before: Config | None, role: str, config: Config) -> ExpectedInputs | None:
    """What was settled for a network when the run was started from the same weights."""
    if before is None:
        return None
    old, new = (getattr(one, role) for one in (before, config))
    data = before.data
    if old.std == UNSET or (old.model, old.pretrained) != (new.model, new.pretrained):
        return None
    cubic = data.interpolation == "bicubic"
    return ExpectedInputs(old.mean, old.std, data.image_size, data.centre_crop, "bicubic" if cubic else "bilinear")
