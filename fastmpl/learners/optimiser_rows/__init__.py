"""The table of optimisers: how each is built, what it keeps, and the derivative of its update by its gradient.

`table` holds the rows and `derivatives` the mathematics; `lamb`, `sgd_ema` and `apex` are those that need more than torch's
constructors. What all share (rates, clip, skips) is in `fastmpl.learners.optimiser`.
"""

from fastmpl.learners.optimiser_rows.derivatives import SteppedParameter
from fastmpl.learners.optimiser_rows.table import OPTIMISERS, OptimiserRow

__all__ = ["OPTIMISERS", "OptimiserRow", "SteppedParameter"]
