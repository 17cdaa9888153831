"""The files of a checkpoint, and what is wrong with them: nothing in one is trusted before its manifest vouches for it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fastmpl.errors import StorageError

SCHEMA = 1
TENSORS, FACTS, MANIFEST = "rank-0.safetensors", "facts.json", "manifest.json"
MOST_RANKS = 65_536
LARGEST_JSON = 16 << 20  # bytes of a manifest or of facts that a reader looks at


def tensors_of(rank: int) -> str:
    """The name of a rank's file of tensors."""
    return f"rank-{rank}.safetensors"


def fingerprint(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def verify(path: Path) -> Mapping[str, Any]:
    """The manifest of a checkpoint with whose files nothing is wrong.

    Raises StorageError, naming the file that is missing or altered.
    """
    manifest = manifest_of(path)
    for name, expected in manifest["files"].items():
        _verify(path / name, expected)
    return manifest


def manifest_of(path: Path) -> dict[str, Any]:
    """The manifest, once it names what a checkpoint has and nothing else: its names become paths."""
    manifest = json_in(path / MANIFEST)
    files, ranks = manifest.get("files"), manifest.get("ranks")
    if manifest.get("schema") != SCHEMA:
        raise StorageError(f"{path} has schema {manifest.get('schema')!r}; this version reads {SCHEMA}.")
    if not isinstance(ranks, int) or not 1 <= ranks <= MOST_RANKS or not isinstance(manifest.get("step"), int):
        raise StorageError(f"{path / MANIFEST} says neither its step nor how many ranks wrote it.")
    if not isinstance(manifest.get("sharded", []), list):
        raise StorageError(f"{path / MANIFEST} does not say which tensors are shared by ranks.")
    if not isinstance(files, Mapping) or set(files) != {FACTS, *map(tensors_of, range(ranks))}:
        raise StorageError(f"{path / MANIFEST} lists other files than a checkpoint has.")
    return manifest


def tensors_in(path: Path) -> dict[str, Tensor]:
    if not _regular(path):
        raise StorageError(f"{path} is missing.")
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise StorageError(f"{path} is not a valid file of tensors: {error}.") from error


def _regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def json_in(path: Path) -> dict[str, Any]:
    if not _regular(path):
        raise StorageError(f"{path} is missing.")
    if path.stat().st_size > LARGEST_JSON:
        raise StorageError(f"{path} is larger than {LARGEST_JSON} bytes.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not valid JSON.") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} holds no JSON object.")
    return content


def _verify(path: Path, expected: object) -> None:
    if not _regular(path):
        raise StorageError(f"{path} is missing.")
    if not isinstance(expected, Mapping) or path.stat().st_size != expected.get("size"):
        raise StorageError(f"{path} has {path.stat().st_size} bytes, and not those that its manifest says.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected.get("sha256"):
        raise StorageError(f"{path} was altered: its checksum is not that of its manifest.")
