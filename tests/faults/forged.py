"""Checkpoints whose hashes are right and whose content is not what a run writes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from fastmpl.run.checkpoint_files import FACTS, MANIFEST, TENSORS


class Content(NamedTuple):
    """All that a checkpoint of one rank holds; a forgery changes it in place."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    manifest: dict[str, Any]


def fingerprint(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def forge(path: Path, change: Callable[[Content], object]) -> None:
    """Rewrites the checkpoint at `path` with `change` applied, and with the right sizes and hashes."""
    found = Content(
        safetensors.torch.load_file(path / TENSORS),
        json.loads((path / FACTS).read_text()),
        json.loads((path / MANIFEST).read_text()),
    )
    change(found)
    contents = {TENSORS: safetensors.torch.save(found.tensors), FACTS: json.dumps(found.facts).encode()}
    for name, data in contents.items():
        (path / name).write_bytes(data)
        found.manifest["files"][name] = fingerprint(data)
    (path / MANIFEST).write_text(json.dumps(found.manifest))
