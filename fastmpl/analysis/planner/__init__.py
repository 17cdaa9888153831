"""What a run would need, from its configuration alone: bytes a rank holds and gathers, activations, arithmetic.

`state` is ZeRO's arithmetic, pure functions of counts; `cost` runs the step on fake tensors; `plan` puts the two together
for every sharding and schedule, and says what fits; `text` prints it. No data is read, nothing is computed.
"""

from fastmpl.analysis.planner.plan import Plan, plan
from fastmpl.analysis.planner.state import Gathered, State, gathered_bytes, state_bytes
from fastmpl.analysis.planner.text import lines

__all__ = ["Gathered", "Plan", "State", "gathered_bytes", "lines", "plan", "state_bytes"]
