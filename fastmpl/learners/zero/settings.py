"""DeepSpeed's configuration, derived from ours: the one place that knows DeepSpeed's keys.

The mathematics stays in this project. DeepSpeed holds the shards, reduces gradients and gathers parameters; clipping,
the skip of updates that are not finite, rates, the optimiser and bf16's autocast are the learner's, so that a sharded
run takes the steps of one process. What DeepSpeed would do of these is switched off here.
"""

from typing import Any, Final

from fastmpl.config import SystemConfig

BUCKET: Final = 50_000_000  # elements of a message at most; DeepSpeed allocates that many before it looks


def settings(system: SystemConfig, *, ranks: int, elements: int, on_gpu: bool) -> dict[str, Any]:
    """What `deepspeed.initialize` takes as `config`, for a network of that many elements."""
    bucket = min(BUCKET, elements + elements % 2)  # DeepSpeed wants an even number
    stage = system.zero_stage
    zero: dict[str, Any] = {
        "stage": stage,
        # reductions while the backward pass goes on; stages 0 and 1 reduce after the last micro-batch
        "overlap_comm": on_gpu and stage >= 2,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        # true replaces F.linear in the whole process by a function without forward mode
        "memory_efficient_linear": False,
    }
    if stage in (1, 2) and not system.offload:
        zero["compute_grad_norm"] = False  # it waits for the device; the learner's does not
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": 0,  # small parameters too: a moved shard must be what passes see
            "stage3_prefetch_bucket_size": bucket,
            "sub_group_size": elements * 2,  # one optimiser step for all shards
        }
    if system.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    return {
        # images a step are the data's affair; DeepSpeed only wants the three to agree
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # any number of backward passes make a step: micro-batches, and the one of the validation loss
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,  # on the shards, by the learner, where its Jacobian is known
        "bf16": {"enabled": False},  # weights and messages are float32; bf16 is autocast's, inside the network
        "fp16": {"enabled": False},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # the learner's own
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device
        "steps_per_print": None,
    }
