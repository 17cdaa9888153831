"""What each package of fastmpl may import of the others: a package sees those of lower rows, and no file is exempt."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS: tuple[tuple[str, ...], ...] = (  # packages and modules of fastmpl; those of one row do not see each other
    ("paired_statistics", "fastmpl_kernels", "untrusted"),
    ("errors",),
    ("config", "distributed"),
    ("models",),
    ("data", "learners"),
    ("methods",),
    ("step",),
    ("telemetry",),
    ("report",),
    ("run",),
    ("analysis", "study"),
    ("commands",),
    ("cli",),
)
NARROWER: dict[str, set[str]] = {  # packages that see less than the rows below them
    "fastmpl_kernels": set(),
    "config": {"errors", "untrusted"},
    "data": {"config", "errors", "distributed", "untrusted"},
    "methods": {"fastmpl_kernels", "data"},
}
BATCH_ALONE = {"methods", "step"}  # of fastmpl.data these see data.batch, and nothing else
ROOT_FILES = {
    "__init__": {"commands", "config", "errors", "run"},
    "__main__": {"cli"},
}  # the Python interface and `python -m fastmpl`
WITHIN_DATA: dict[str, set[str]] = {  # what a folder of fastmpl.data may import of the others
    "files": set(),
    "stores": set(),
    "memory": set(),
    "readers": {"files"},
    "streaming": {"files", "memory"},
    "checks": {"files", "readers"},
    "packing": {"files", "readers"},
}
ABOVE = {"build", "evaluation", "loader", "prepare", "sources", "open_streams"}  # what combines these folders for a run
WITHOUT_TORCH = (
    "cli",
    "config",
    "commands/__init__.py",
    "commands/status.py",
    "distributed/__init__.py",
    "distributed/threads.py",
    "run/__init__.py",
    "run/checkpoint_files.py",
    "telemetry/metrics_file.py",
    "telemetry/progress.py",
)


def source_files() -> list[Path]:
    return sorted([*(ROOT / "fastmpl").rglob("*.py"), *(ROOT / "kernels" / "fastmpl_kernels").rglob("*.py")])


def module_of(path: Path) -> str:
    base = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts)


def room_of(module: str) -> str:
    """The package or module directly under fastmpl, or fastmpl_kernels as a whole."""
    parts = module.split(".")
    return "fastmpl_kernels" if parts[0] == "fastmpl_kernels" else (parts[1] if len(parts) > 1 else "__init__")


def imported_modules(source: str) -> list[str]:
    """Dotted names of our own modules that a source imports, wherever in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            found += [f"{module}.{alias.name}" for alias in node.names] if module == "fastmpl" else [module]
    return [name for name in found if name.split(".")[0] in ("fastmpl", "fastmpl_kernels")]


def visible_rooms(room: str) -> set[str]:
    """The rooms that files of `room` may import."""
    if room in ROOT_FILES:
        return ROOT_FILES[room]
    row = next(number for number, rooms in enumerate(ROWS) if room in rooms)
    below = {name for rooms in ROWS[:row] for name in rooms}
    return NARROWER.get(room, below) | {room}


def forbidden_imports(module: str, source: str) -> list[str]:
    """What the source of `module` imports and may not."""
    room, found = room_of(module), []
    for name in imported_modules(source):
        there = room_of(name)
        if name == "fastmpl.__version__":
            continue
        beyond_batch = room in BATCH_ALONE and there == "data" and name != "fastmpl.data.batch"
        if there not in visible_rooms(room) or beyond_batch:
            found.append(name)
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upward(path: Path) -> None:
    assert forbidden_imports(module_of(path), path.read_text()) == []


def test_every_package_and_file_has_a_row() -> None:
    there = {room_of(module_of(path)) for path in source_files()}
    assert there == {name for rooms in ROWS for name in rooms} | ROOT_FILES.keys()


@pytest.mark.parametrize("room", [name for rooms in ROWS for name in rooms if name != "cli"])
def test_a_planted_upward_import_is_found(room: str) -> None:
    row = next(number for number, rooms in enumerate(ROWS) if room in rooms)
    module = f"fastmpl.{room}.any" if room != "fastmpl_kernels" else "fastmpl_kernels.any"
    for above in (name for rooms in ROWS[row + 1 :] for name in rooms):
        assert forbidden_imports(module, f"def f() -> None:\n    from fastmpl.{above} import anything") == [
            f"fastmpl.{above}"
        ]


def test_the_root_has_few_rooms() -> None:
    entries = [path for path in (ROOT / "fastmpl").iterdir() if path.name != "__pycache__"]
    assert sum(path.is_dir() for path in entries) <= 16
    assert sum(path.is_file() for path in entries) <= 6


def test_the_folders_of_the_data_import_one_way() -> None:
    data = ROOT / "fastmpl" / "data"
    assert {path.name for path in data.iterdir() if (path / "__init__.py").exists()} == WITHIN_DATA.keys()
    for folder, may in WITHIN_DATA.items():
        for path in (data / folder).glob("*.py"):
            for name in imported_modules(path.read_text()):
                there = name.split(".")[2] if name.startswith("fastmpl.data.") else ""
                fine = there in may | {folder} or there not in WITHIN_DATA.keys() | ABOVE
                assert fine, f"{path.relative_to(ROOT)} imports {name}"


def packages_imported(path: Path, *, everywhere: bool) -> set[str]:
    """Top-level names of the packages that a file imports: everywhere in it, or when it is itself imported."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    names = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}


OPTIONAL = {"nvidia": "data", "deepspeed": "learners", "triton": "fastmpl_kernels", "rich": "telemetry"}


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_dependency_is_known_in_one_room(name: str) -> None:
    for path in source_files():
        here = room_of(module_of(path))
        assert name not in packages_imported(path, everywhere=True) or here == OPTIONAL[name], path.relative_to(ROOT)


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_the_command_line_imports_no_torch(name: str) -> None:
    place = ROOT / "fastmpl" / name
    for path in place.rglob("*.py") if place.is_dir() else [place]:
        assert "torch" not in packages_imported(path, everywhere=False), path.relative_to(ROOT)


def test_status_is_imported_without_torch() -> None:
    seen = "import sys, fastmpl.commands.status; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", seen], check=False).returncode == 0


def test_the_mpl_step_is_one_file_of_less_than_150_lines() -> None:
    path = ROOT / "fastmpl" / "step" / "mpl_step.py"
    assert "class MplStep" in path.read_text()
    assert len(path.read_text().splitlines()) < 150
