"""The files of a checkpoint and their verification. No file is used before its manifest confirms it."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpl.errors import StorageError
from fastmpl.run.checkpoint_schema import require_known

if TYPE_CHECKING:
    from torch import Tensor

TENSORS, FACTS, MANIFEST = "rank-0.safetensors", "facts.json", "manifest.json"
NAME = re.compile(r"step-(\d{1,12})")
MOST_RANKS = 65_536
MOST_STEPS = 10**12
LARGEST_JSON = 16 << 20  # bytes; a larger manifest or file of facts is refused


def tensors_of(rank: int) -> str:
    """The name of a rank's file of tensors."""
    return f"rank-{rank}.safetensors"


def verify(path: Path) -> Mapping[str, Any]:
    """The manifest of a checkpoint, after comparing every file with it.

    Raises StorageError that names the file which is missing or altered.
    """
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        _verify(path / name, expected)
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, once it names exactly the files of a checkpoint, because its names become paths."""
    manifest = read_json(path / MANIFEST)
    files, ranks = manifest.get("files"), manifest.get("ranks")
    require_known(manifest.get("schema"), path)
    step = manifest.get("step")
    if type(ranks) is not int or not 1 <= ranks <= MOST_RANKS or type(step) is not int or not 0 <= step <= MOST_STEPS:
        raise StorageError(f"{path / MANIFEST} lacks its step or the number of ranks that wrote it.")
    named = NAME.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise StorageError(f"{path / MANIFEST} is of step {step}, and its folder of step {int(named[1])}.")
    sharded = manifest.get("sharded", [])
    if not isinstance(sharded, list) or not all(isinstance(name, str) for name in sharded):
        raise StorageError(f"{path / MANIFEST} has no list of sharded tensors.")
    if not isinstance(files, Mapping) or set(files) != {FACTS, *map(tensors_of, range(ranks))}:
        raise StorageError(f"{path / MANIFEST} lists other files than those of a checkpoint.")
    return manifest


def read_tensors(path: Path) -> "dict[str, Tensor]":
    import safetensors.torch  # imports torch, which takes seconds: manifests are read without it

    if not _is_regular(path):
        raise StorageError(f"{path} is missing.")
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise StorageError(f"{path} is not a valid file of tensors: {error}.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def read_json(path: Path) -> dict[str, Any]:
    if not _is_regular(path):
        raise StorageError(f"{path} is missing.")
    if path.stat().st_size > LARGEST_JSON:
        raise StorageError(f"{path} is larger than {LARGEST_JSON} bytes.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not valid JSON.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} does not hold a JSON object.")
    return content


def _verify(path: Path, expected: object) -> None:
    if not _is_regular(path):
        raise StorageError(f"{path} is missing.")
    if not isinstance(expected, Mapping) or path.stat().st_size != expected.get("size"):
        raise StorageError(f"{path} has {path.stat().st_size} bytes; its manifest says another number.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.get("sha256"):
        raise StorageError(f"{path} was altered: its checksum differs from its manifest.")
