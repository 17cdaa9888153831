"""Draws figures as SVG inside a page: text stays text, and colours are the page's, in light and in dark mode.

Matplotlib writes fixed colours. Each role has a placeholder colour, which is replaced by the page's variable of that
name (`--student`). What is drawn is in the three charts; the variables' values are in the style sheet.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

ROLES: Final = ("ink", "muted", "grid", "surface", "student", "average", "teacher", "extra")
COLOUR: Final = {role: f"#0a0b{number:02x}" for number, role in enumerate(ROLES, 1)}
DASHES: Final = {"teacher": (0, (4, 1.6)), "extra": (0, (1.4, 1.2))}  # by role; curves on each other both show
STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollar signs
    "font.sans-serif": ["DejaVu Sans"],  # measures the text; the page's own font shows it
    "font.size": 8,
    "text.color": COLOUR["ink"],
    "axes.facecolor": "none",
    "axes.edgecolor": COLOUR["muted"],
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": COLOUR["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
_SIZE: Final = re.compile(r'width="[\d.]+pt" height="[\d.]+pt" ')
_NAMED: Final = re.compile(r'<g id="[^"]*"')


class Key(NamedTuple):
    """One row of a legend: what is drawn in the colour of `role`."""

    label: str
    role: str


class Chart(NamedTuple):
    """A figure with its words, as the templates take it."""

    title: str
    caption: str
    legend: Sequence[Key]
    svg: Markup


def percent_axis(axis: Axis) -> None:
    """Percent along an axis of shares, with as many decimals as tell its labels apart."""

    def format_tick(share: float, place: int | None) -> str:
        shares = axis.get_majorticklocs()
        decimals = next((n for n in range(6) if len({f"{100 * x:.{n}f}" for x in shares}) == len(shares)), 6)
        return f"{100 * share + 0.0:.{decimals}f} %"

    axis.set_major_formatter(FuncFormatter(format_tick))


def step_axis(axes: Axes) -> None:
    """Steps along the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.02)
    axes.set_xlabel("step", color=COLOUR["muted"])


def draw(description: str, inches: tuple[float, float], paint: Callable[[Axes], None]) -> Markup:
    """What `paint` draws, as an SVG element of no fixed size; the same for the same input.

    description: for those who do not see it, and unlike that of any other figure of the page. inches: width and
    height for text of 8 points; a page scales the picture to its column.
    """
    buffer = io.StringIO()
    settings: Any = STYLE | {"svg.hashsalt": description}
    with rc_context(settings):
        figure = Figure(figsize=inches, layout="constrained")
        paint(figure.subplots())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    described = Markup('role="img" aria-label="{}" ').format(description)
    text = _SIZE.sub(lambda match: described, text, count=1)
    text = _NAMED.sub("<g", text)  # names that would repeat in every figure of a page
    for role, colour in COLOUR.items():
        text = text.replace(f": {colour}", f": var(--{role})")
    return Markup(text)
