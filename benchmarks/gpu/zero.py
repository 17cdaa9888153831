"""Sharded learners of one rank take the steps of the plain learner: DeepSpeed's stages, where it is installed."""

from functools import partial

import torch

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.collectives import one_rank
from benchmarks.gpu.runs import Form, make_batches, make_config, make_trainee
from benchmarks.records import Row
from fastmpl.run.build import Trainee

STEPS = 3
CLOSE = 1e-4  # relative: sums over pieces are in another order


def _take_steps(form: Form, setting: Setting) -> tuple[dict[str, torch.Tensor], Trainee]:
    config = make_config(form)
    trainee = make_trainee(config, setting.device)
    for batch in make_batches(config, STEPS, setting.device):
        trainee.step(batch)
    return {name: value.detach().clone() for name, value in trainee.student.weights()}, trainee


def compare_stage(stage: int, setting: Setting) -> Row:
    import deepspeed  # noqa: F401  # its absence is this row's word

    plain, _ = _take_steps({}, setting)
    with one_rank(setting):
        sharded, trainee = _take_steps({"system.engine": "zero", "system.zero_stage": stage}, setting)
        for learner in trainee.learners().values():
            learner.close()
    floating = [name for name, value in plain.items() if value.is_floating_point()]
    error = max(float((plain[n] - sharded[n]).norm() / plain[n].norm().clamp(min=1e-30)) for n in floating)
    return {"passed": error <= CLOSE, "steps": STEPS, "error": error}


def cases(setting: Setting) -> Cases:
    return [Case(f"stage {stage}", partial(compare_stage, stage, setting), 90) for stage in (1, 2)]
