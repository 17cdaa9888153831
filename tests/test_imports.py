"""The way of the data is one-way: what each package of fastmpl may import of the others."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPINE = {"config", "errors", "threads", "statistics"}  # imported by all, imports nothing of ours but itself
MAY: dict[str, set[str]] = {
    "fastmpl_kernels": {"fastmpl_kernels"},
    **dict.fromkeys(SPINE, SPINE),
    "data": {"data"},
    "models": {"models", "fastmpl_kernels"},
    "methods": {"methods", "fastmpl_kernels", "data"},
    "learners": {"learners", "models", "fastmpl_kernels"},
    "step": {"step", "methods", "learners", "fastmpl_kernels", "data", "models"},
}
WITHIN_DATA: dict[str, set[str]] = {  # what a folder of fastmpl.data may import of the others
    "files": set(),
    "stores": set(),
    "memory": set(),
    "readers": {"files"},
    "streaming": {"files", "memory"},
    "checks": {"files", "readers"},
    "packing": {"files", "readers"},
}
ABOVE = {"build", "evaluated", "loader", "prepare", "sources", "streams"}  # what makes a run's data of these folders
BATCH_ALONE = {"methods", "step"}  # of fastmpl.data


def sources() -> list[Path]:
    return sorted([*(ROOT / "fastmpl").rglob("*.py"), *(ROOT / "kernels" / "fastmpl_kernels").rglob("*.py")])


def package(parts: tuple[str, ...]) -> str:
    """The room a module is in: a package or a module directly under fastmpl, or fastmpl_kernels as a whole."""
    return "fastmpl_kernels" if parts[0] == "fastmpl_kernels" else (parts[1] if len(parts) > 1 else "")


def imported(path: Path) -> list[str]:
    """Dotted names of our own modules that a file imports, wherever in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            found += [f"{module}.{alias.name}" for alias in node.names] if module == "fastmpl" else [module]
    return [name for name in found if name.split(".")[0] in ("fastmpl", "fastmpl_kernels")]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upward(path: Path) -> None:
    base = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
    here = package(path.relative_to(base).with_suffix("").parts)
    if here not in MAY:
        return  # the trainer and the tools may import everything
    for name in imported(path):
        there = package(tuple(name.split(".")))
        assert there in MAY[here] | SPINE, f"{path.relative_to(ROOT)} imports {name}"
        if here in BATCH_ALONE and there == "data":
            assert name == "fastmpl.data.batch", f"{path.relative_to(ROOT)} needs a batch of the data, and nothing else"


def test_the_folders_of_the_data_import_one_way() -> None:
    data = ROOT / "fastmpl" / "data"
    assert {path.name for path in data.iterdir() if (path / "__init__.py").exists()} == WITHIN_DATA.keys()
    for folder, may in WITHIN_DATA.items():
        for path in (data / folder).glob("*.py"):
            for name in imported(path):
                there = name.split(".")[2] if name.startswith("fastmpl.data.") else ""
                fine = there in may | {folder} or there not in WITHIN_DATA.keys() | ABOVE
                assert fine, f"{path.relative_to(ROOT)} imports {name}"


OPTIONAL = {"nvidia": ("data",), "deepspeed": ("learners",), "triton": ("fastmpl_kernels",), "rich": ("progress",)}


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_dependency_is_known_in_one_room(name: str) -> None:
    for path in sources():
        base = ROOT / "kernels" if path.is_relative_to(ROOT / "kernels") else ROOT
        here = package(path.relative_to(base).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        names = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert name not in names or here in OPTIONAL[name], f"{path.relative_to(ROOT)} imports {name}"


def test_the_mpl_step_is_one_file_of_less_than_150_lines() -> None:
    path = ROOT / "fastmpl" / "step" / "meta.py"
    assert "def meta_step" in path.read_text()
    assert len(path.read_text().splitlines()) < 150
