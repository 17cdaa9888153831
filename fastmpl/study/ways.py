"""Ways to use few labels, compared on the same splits and draws: `fastmpl ablate --arms probe lora supervised uda mpl`.

A linear probe and low-rank adapters learn from the labels alone; so does `supervised`, which trains the whole network. The
others use unlabelled images as well. Every arm starts from the configuration's pretrained weights, if it names any.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fastmpl.config import Config, ConfigError
from fastmpl.study.arms import Arm

Way = Literal["probe", "lora", "supervised", "uda", "mpl", "reduced_mpl"]
ADAPTER = "lora:8"  # of the arm `lora`, where the configuration names none
# a network that the arm does not train takes no weights, and stored distributions only serve reduced_mpl
ONE_NETWORK: Mapping[str, Any] = {
    "feedback.kind": "off",
    "feedback.control": "none",
    "feedback.every": 1,
    "method.targets": "soft",
    "method.threshold": 0.0,
    "data.store": "",
    "teacher.pretrained": "",
    "teacher.adapter": "",
}


def _one_network(method: str, adapter: str) -> dict[str, Any]:
    return {**ONE_NETWORK, "method.name": method, "student.adapter": adapter}


def _mpl(config: Config) -> dict[str, Any]:
    """The configuration's own feedback; exact where it has none. A teacher of the student's kind starts as it does."""
    changes: dict[str, Any] = {"method.name": "mpl", "data.store": "", "method.threshold": 0.0}
    if config.method.name != "mpl" or config.feedback.kind == "off":
        changes |= {"feedback.kind": "exact", "method.targets": "soft"}
    shape = ("model", "width", "depth", "norm")
    alike = all(getattr(config.teacher, key) == getattr(config.student, key) for key in shape)
    if alike and not config.teacher.pretrained:
        changes["teacher.pretrained"] = config.student.pretrained
    return changes


def _reduced_mpl(config: Config) -> dict[str, Any]:
    changes: dict[str, Any] = {"method.name": "reduced_mpl", "teacher.pretrained": "", "teacher.adapter": ""}
    if config.feedback.kind == "off":
        changes |= {"feedback.kind": "exact", "method.targets": "soft"}
    return changes


CHANGES: Mapping[Way, Callable[[Config], dict[str, Any]]] = {
    "probe": lambda config: _one_network("supervised", "") | {"finetune.steps": 0},
    "lora": lambda config: _one_network("supervised", config.student.adapter or ADAPTER),
    "supervised": lambda config: _one_network("supervised", ""),
    "uda": lambda config: _one_network("uda", config.student.adapter),
    "mpl": _mpl,
    "reduced_mpl": _reduced_mpl,
}


def build_ways(config: Config, path: Path, ways: Sequence[Way]) -> list[Arm]:
    """The arms of `ways` on `config`, which lies in `path`. Raises ConfigError for one that cannot be asked."""
    if len(set(ways)) != len(ways) or len(ways) < 2:
        raise ConfigError(f"--arms {' '.join(ways)}: name at least two arms, each once.")
    needing = [way for way in ways if way in ("probe", "lora")]
    if needing and not config.student.pretrained:
        raise ConfigError(f"--arms {needing[0]} needs student.pretrained, the weights to start from.")
    return [Arm(way, path, CHANGES[way](config), "probe" if way == "probe" else "train") for way in ways]
