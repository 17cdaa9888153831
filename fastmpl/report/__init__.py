"""What came out, as one HTML file that needs nothing else: a run (`write_report`), an experiment (`write_comparison`).

No scripts and nothing from elsewhere; every text is escaped. Leaves out what a run measures (`fastmpl.telemetry.metrics`).
"""

from fastmpl.paired_statistics import Interval, mean, paired_interval, standard_error
from fastmpl.report.comparison_chart import ArmResult, Comparison
from fastmpl.report.comparison_chart import rows as compared_rows
from fastmpl.report.pages import points, versions, write_analyses, write_comparison, write_report
from fastmpl.report.reading import read_run

__all__ = [
    "ArmResult",
    "Comparison",
    "Interval",
    "compared_rows",
    "mean",
    "paired_interval",
    "points",
    "read_run",
    "standard_error",
    "versions",
    "write_analyses",
    "write_comparison",
    "write_report",
]
