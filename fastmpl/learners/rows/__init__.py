"""Optimisers as rows: how each is built, what it keeps, and the derivative of its update by its gradient.

`table` holds them, `derivatives` the mathematics, `lamb` and `apex` what needs more than torch's constructors. What all
share (rates, clip, skips) is in `fastmpl.learners.optimisers`.
"""

from fastmpl.learners.rows.derivatives import Stepped
from fastmpl.learners.rows.table import ROWS, Row

__all__ = ["ROWS", "Row", "Stepped"]
