"""Chooses from a memory plan the cheapest setting that fits, and names its keys."""

from typing import Final, NamedTuple

from fastmpl.analysis.planner.plan import SCHEDULES, SHARDINGS, Fit, MemoryPlan

ROOM: Final = 0.9  # share of the memory that a plan may fill: it does not count cuDNN's workspaces, nor fragmentation


class Recommendation(NamedTuple):
    """The setting, and the keys of the configuration that make it."""

    fit: Fit
    keys: dict[str, object]


def recommend(plan: MemoryPlan) -> Recommendation | None:
    """The cheapest setting that fits in `ROOM` of the memory; None where none does.

    Cheap means, in this order: nothing in host memory, parameters whole on every rank (stage 3 sends them for each pass),
    little arithmetic, little sharding.
    """
    fitting = [fit for fit in plan.fits if fit.peak <= ROOM * plan.memory]
    if not fitting:
        return None
    order = list(SHARDINGS)

    def cost(fit: Fit) -> tuple[bool, bool, int, int]:
        stage, offload = SHARDINGS[fit.sharding]
        return offload, stage == 3, plan.costs[fit.schedule].flops, order.index(fit.sharding)

    best = min(fitting, key=cost)
    return Recommendation(best, keys_of(best))


def keys_of(fit: Fit) -> dict[str, object]:
    """The keys of [system] that make the setting."""
    stage, offload = SHARDINGS[fit.sharding]
    schedule = {f"system.{key}": value for key, value in SCHEDULES.get(fit.schedule, {}).items()}
    if not stage:
        return schedule | {"system.engine": "plain"}
    return schedule | {"system.engine": "zero", "system.zero_stage": stage, "system.offload": offload}
