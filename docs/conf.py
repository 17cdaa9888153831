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
autodoc_mock_imports: list[str] = []
add_module_names = False
python_use_unqualified_type_names = True
suppress_warnings = ["myst.strikethrough"]

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)]*)?\)")


def link_to_sources(app: object, docname: str, source: list[str]) -> None:
    """A link to a file outside docs/ becomes the file's name: the site holds the pages alone."""

    def named(match: re.Match[str]) -> str:
        assert (ROOT / "docs" / match[1]).exists(), f"{docname}: {match[1]} does not exist"
        return "]"

    text = LINK.sub(named, source[0])
    source[0] = re.sub(r"\[([^\[\]]+)\](?![\[(:])", r"\1", text) if text != source[0] else text


def docstring_to_rst(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: code in single backticks, formulas indented. Both become reStructuredText."""
    out: list[str] = []
    for line in lines:
        is_indented = line.startswith((" ", "\t"))
        if is_indented and (not out or not out[-1].startswith(" ")):
            while out and not out[-1]:
                out.pop()
            out += ["", "::", ""]
        if not is_indented and out and out[-1].startswith(" "):
            out.append("")
        out.append(line if is_indented else re.sub(r"`+([^`]+)`+", r"``\1``", re.sub(r"([*_|\\])", r"\\\1", line)))
    fixed = [re.sub(r"``([^`]+)``", lambda code: f"``{re.sub(r'\\\\(.)', r'\1', code[1])}``", line) for line in out]
    lines[:] = fixed


def setup(app: object) -> None:
    app.connect("source-read", link_to_sources)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", docstring_to_rst)  # type: ignore[attr-defined]
