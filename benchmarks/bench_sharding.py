"""What each sharding holds of two EfficientNet-L2 on 8 GPUs, planned: `python -m benchmarks.bench_sharding`.

The networks, batch and schedule are those of launch/configs/imagenet_efficientnet_l2_zero.toml. Nothing is computed: the
state is ZeRO's formula (tests hold it against measurement on CPU ranks), activations are counted on fake tensors. GB are
10^9 bytes. Two or three minutes.
"""

import argparse

from benchmarks.environment import ROOT
from benchmarks.records import Record, Row, save
from fastmpl.analysis.planner import MemoryPlan, plan_memory
from fastmpl.config import load

CONFIG = ROOT / "launch/configs/imagenet_efficientnet_l2_zero.toml"
SCHEDULE = "split, deferred, recomputed"
GB = 1e9


def rows(found: MemoryPlan) -> list[Row]:
    made: list[Row] = []
    for fit in found.fits:
        state, gathered = found.states[fit.sharding], found.gathered[fit.sharding]
        numbers = {
            "parameters": state.parameters,
            "gradients": state.gradients,
            "optimiser": state.optimiser,
            "average": state.average,
            "state": state.device,
            "on the host": state.host,
            "kept for the credit": gathered.kept,
            "gathered for it": gathered.credit,
            "peak of a step": fit.peak,
        }
        made.append({"GB of a GPU": fit.sharding} | {name: f"{count / GB:.2f}" for name, count in numbers.items()})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--memory", type=float, default=80.0, help="GiB of a GPU")
    asked = parser.parse_args()
    config = load(CONFIG)
    found = plan_memory(config, ranks=asked.ranks, memory=asked.memory * 2**30, classes=1000, schedules=(SCHEDULE,))
    made = rows(found)
    for row in made:
        print("  ".join(str(value) for value in row.values()))
    print(SCHEDULE, found.batches, found.costs[SCHEDULE])
    facts = {
        "ranks": asked.ranks,
        "network": config.student.model,
        "parameters": found.networks["student"].elements,
        "pixels": config.data.image_size,
        "precision": config.system.precision,
        "schedule": SCHEDULE,
        **found.batches,
        "activations_gb": round(found.costs[SCHEDULE].activations / GB, 2),
        "tflop_of_a_rank_and_step": round(found.costs[SCHEDULE].flops / 1e12, 1),
    }
    print(save(Record("sharding", "table", made, facts)))


if __name__ == "__main__":
    main()
