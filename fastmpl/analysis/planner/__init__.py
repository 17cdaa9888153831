"""Predicts what a run needs from its configuration alone: bytes of a rank, activations, arithmetic, hours.

`state_bytes` has the formulas of ZeRO, pure functions of counts. `cost` counts a step on fake tensors. `plan` combines
both for every sharding and schedule and tells what fits, `recommend` chooses one, `duration` tells how long it takes, and
`text` prints it. `messages` counts what ranks send in a step, `link` how long that takes, and `scale` what else grows with
ranks and images. Of the data the classes alone are read, where it is there; nothing is computed.
"""

from fastmpl.analysis.planner.duration import Pace, pace_at_share, pace_of_run
from fastmpl.analysis.planner.link import Link
from fastmpl.analysis.planner.plan import MemoryPlan, count_classes, plan_memory
from fastmpl.analysis.planner.recommend import Recommendation, recommend
from fastmpl.analysis.planner.scale import ScalePlan, plan_scale, uneven_batches
from fastmpl.analysis.planner.scale_text import format_scale
from fastmpl.analysis.planner.state_bytes import Gathered, StateBytes, gathered_bytes, state_bytes
from fastmpl.analysis.planner.text import format_duration, format_plan, format_recommendation

__all__ = [
    "Gathered",
    "Link",
    "MemoryPlan",
    "Pace",
    "Recommendation",
    "ScalePlan",
    "StateBytes",
    "count_classes",
    "format_duration",
    "format_plan",
    "format_recommendation",
    "format_scale",
    "gathered_bytes",
    "pace_at_share",
    "pace_of_run",
    "plan_memory",
    "plan_scale",
    "recommend",
    "state_bytes",
    "uneven_batches",
]
