"""The groups of both parts, in the order in which they run: what the others depend on comes first."""

from typing import Final

from benchmarks.gpu.cases import Group, Part

GROUPS: Final[dict[Part, tuple[Group, ...]]] = {
    "correct": (
        Group("machine", "benchmarks.gpu.machine", 30),
        Group("ceilings", "benchmarks.gpu.ceilings", 30),
        Group("kernels", "benchmarks.gpu.kernel_checks", 240),
        Group("graphs", "benchmarks.gpu.graph_checks", 150),
        Group("synchronisation", "benchmarks.gpu.synchronisation", 60),
        Group("loading hazards", "benchmarks.gpu.loading_hazards", 45),
        Group("memory", "benchmarks.gpu.memory_checks", 60),
        Group("collectives", "benchmarks.gpu.collectives", 45),
        Group("resume", "benchmarks.gpu.resume", 60),
        Group("tf32", "benchmarks.gpu.tf32", 30),
        Group("sanitizer", "benchmarks.gpu.sanitizer", 90),
        Group("zero", "benchmarks.gpu.zero", 60),
        Group("tests", "benchmarks.gpu.gpu_tests", 120),
    ),
    "speed": (
        Group("machine", "benchmarks.gpu.machine", 30),
        Group("ceilings", "benchmarks.gpu.ceilings", 30),
        Group("kernel times", "benchmarks.gpu.kernel_times", 120),
        Group("steps", "benchmarks.gpu.step_times", 330),
        Group("profile", "benchmarks.gpu.profile_steps", 45),
        Group("loader", "benchmarks.gpu.loader_times", 45),
    ),
}


def group_named(name: str) -> Group:
    """Raises KeyError for a name that no group has."""
    return {group.name: group for groups in GROUPS.values() for group in groups}[name]
