"""DeepSpeed itself: imported late, made quiet, its engine built and taken down.

Private details of DeepSpeed are used here and in `shards` alone; tests/learners/test_deepspeed.py pins each of them.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]

from fastmpl.errors import ConfigError
from fastmpl.learners.arithmetic import Precision, autocast
from fastmpl.learners.passes import to_float32
from fastmpl.learners.protocol import Forward

LOGGER = "DeepSpeed"


def deepspeed() -> Any:
    """The package. Raises ConfigError where it is not installed."""
    gpu = torch.cuda.is_available()
    if not gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            'system.engine = "zero" needs DeepSpeed, which is not installed: pip install "fastmpl[sharded]". '
            'Or use engine = "plain".'
        ) from error
    # otherwise a C++ operator is compiled at the start: 20 s, or an error where there is no compiler
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:  # standard output is the run's own
            logger.removeHandler(handler)
            logger.addHandler(logging.NullHandler())  # with none at all, logging would print warnings
    # torch's new names for what DeepSpeed calls; no user can change that
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return deepspeed


class EngineNetwork(nn.Module):
    """The network as the engine calls it: DeepSpeed switches off an autocast around it, so this one is inside."""

    def __init__(self, network: nn.Module, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.network = network  # registered: DeepSpeed takes over its parameters
        self.call: Forward = network.__call__
        self.device, self.precision, self.precise = device, precision, False

    def forward(self, images: Float[Tensor, "N *image"]) -> Float[Tensor, "N K"]:
        with autocast(self.device, "float32" if self.precise else self.precision):
            return to_float32(self.call(images))


class Stepper(torch.optim.Optimizer):
    """What DeepSpeed takes for the optimiser: its step is the learner's, once the gradients are reduced."""

    def __init__(self, parameters: list[nn.Parameter], take: Callable[[], None]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self._take = take

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self._take()


def connect(package: Any, timeout: int) -> None:
    """DeepSpeed's group of all ranks, whose operations end after `timeout` seconds as those of ours do."""
    if not dist.is_initialized():  # one process; DeepSpeed needs a group all the same
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    groups, comm = package.utils.groups, package.comm.comm
    if groups._WORLD_GROUP not in dist.distributed_c10d._world.pg_map:  # none yet, or of a run that has ended
        comm.cdb = None
        groups._WORLD_GROUP = dist.new_group(timeout=timedelta(seconds=timeout))


@contextmanager
def redirect_logs(path: Path) -> Iterator[None]:
    """What DeepSpeed has to say within the block is in that file."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger(LOGGER).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)
        handler.close()


def build(network: EngineNetwork, stepper: Stepper, config: dict[str, Any], *, timeout: int) -> Any:
    """An engine that holds `network`, whose parameters it takes over."""
    package = deepspeed()
    connect(package, timeout)
    engine, *_ = package.initialize(model=network, optimizer=stepper, config=config)
    zero = engine.optimizer
    stage = engine.zero_optimization_stage()
    if stage == 3:
        zero._get_norm_groups = lambda: [0.0]  # as compute_grad_norm = False of stages 1 and 2
    elif stage:
        zero.compute_grad_norm = False  # with offload too, where the key is refused
    return engine


def destroy(engine: Any) -> None:
    """Takes an engine down; a rank that ends with one may abort."""
    engine.destroy()
