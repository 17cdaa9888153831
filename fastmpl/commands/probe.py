"""`fastmpl probe`: what is printed of a linear probe on the features of a pretrained network."""

from pathlib import Path

from fastmpl.config import Config
from fastmpl.run.probe import ProbeResult
from fastmpl.run.student_file import WEIGHTS


def format_probe(config: Config, found: ProbeResult) -> str:
    """A line a rate, the chosen one marked, and where the student and the features are."""
    lines = [f"{'rate':>8}  validation    test"]
    for number, score in enumerate(found.scores):
        mark = "  <- best on validation" if number == found.chosen and len(found.scores) > 1 else ""
        validation = "-" if score.validation != score.validation else f"{100 * score.validation:.1f} %"
        test = "-" if score.test is None else f"{100 * score.test:.1f} %"
        lines.append(f"{score.rate:8g}  {validation:>10}  {test:>6}{mark}")
    folder = Path(config.run.output) / config.run.name
    return "\n".join(
        [
            *lines,
            "",
            f"weights   {folder / WEIGHTS} (the frozen network with the chosen classifier)",
            f"features  {found.features} (for data.features)",
            f"next      fastmpl evaluate {folder}",
        ]
    )
