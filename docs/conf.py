"""The documentation as a site: `make docs` builds it offline and fails on any warning."""

import re
from pathlib import Path

from fastmpl import __version__

project, author, version, release = "fastmpl", "the authors of fastmpl", __version__, __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"fastmpl {__version__}"
html_show_sourcelink = False
exclude_patterns = ["_site"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
add_module_names = False
python_use_unqualified_type_names = True
suppress_warnings = ["myst.strikethrough"]

ROOT = Path(__file__).parents[1]


def unlink_sources(app: object, docname: str, source: list[str]) -> None:
    """A link to a file outside docs/ becomes the file's name, for the site holds the pages alone; the file must exist."""

    def name_of(link: re.Match[str]) -> str:
        if not (ROOT / "docs" / link[2]).exists():
            raise FileNotFoundError(f"{docname}: {link[2]} does not exist")
        return link[1]

    source[0] = re.sub(r"\[([^\[\]]+)\]\((\.\./[^)#\s]+)(?:#[^)]*)?\)", name_of, source[0])


def as_rst(line: str) -> str:
    """A line of a docstring: what stands in backticks is code, and nothing else is markup."""
    parts = re.split(r"`+", line)
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part) for i, part in enumerate(parts))


def docstring_to_rst(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: code in backticks, formulas and tables indented. An indented block is shown as it is."""
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = [""]  # of a NamedTuple; the class says what its fields mean
    out: list[str] = []
    in_block = False
    for line in lines:
        indented = line.startswith(" ")
        if line and indented != in_block:
            out += ["", "::", ""] if indented else [""]
            in_block = indented
        out.append(line if in_block else as_rst(line))
    lines[:] = out


def setup(app: object) -> None:
    app.connect("source-read", unlink_sources)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", docstring_to_rst)  # type: ignore[attr-defined]
