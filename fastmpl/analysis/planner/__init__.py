"""Predicts what a run needs from its configuration alone: bytes of a rank, activations, arithmetic.

`state_bytes` has the formulas of ZeRO, pure functions of counts. `cost` counts a step on fake tensors. `plan` combines
both for every sharding and schedule and tells what fits. `text` prints it. No data is read, and nothing is computed.
"""

from fastmpl.analysis.planner.plan import MemoryPlan, plan_memory
from fastmpl.analysis.planner.state_bytes import Gathered, StateBytes, gathered_bytes, state_bytes
from fastmpl.analysis.planner.text import format_plan

__all__ = ["Gathered", "MemoryPlan", "StateBytes", "format_plan", "gathered_bytes", "plan_memory", "state_bytes"]
