"""Images a second of the loader alone, and the share of a step that waits for it."""

import time
from functools import partial
from typing import Final

import torch

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.loading import SOURCES, open_data, source_config
from benchmarks.gpu.runs import Form, capture_calls, warmup_steps
from benchmarks.records import Row
from fastmpl.run.build import assemble
from fastmpl.step.step_graph import GraphedStep
from fastmpl.telemetry.step_timer import StepTimer

LARGE: Final[dict[str, Form]] = {
    "points": {"data.batch_unlabelled": 256},
    "pictures": {
        "data.image_size": 32,
        "data.batch_labelled": 64,
        "data.batch_unlabelled": 448,
        "student.model": "wrn_28_2",
        "teacher.model": "wrn_28_2",
        "system.precision": "bf16",
    },
}


def _form(source: str, setting: Setting) -> Form:
    return {} if setting.is_imitated else LARGE[source]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_loader(source: str, setting: Setting) -> Row:
    """Batches one after another, with nothing between them."""
    config = source_config(source, _form(source, setting))
    batches = 10 if setting.is_imitated else 100
    data = open_data(config, setting.device, setting)
    try:
        for _ in range(5):
            batch = data.train.next()
        images = len(batch.labelled) + 2 * len(batch.weak)
        _wait(setting.device)
        began = time.perf_counter()
        for _ in range(batches):
            data.train.next()
        _wait(setting.device)
        seconds = (time.perf_counter() - began) / batches
    finally:
        data.train.close()
    return {"images": images, "ms_of_a_batch": 1e3 * seconds, "images_per_second": images / seconds}


def time_wait(source: str, graphed: bool, setting: Setting) -> Row:
    """Steps with the loader's thread beside them, and how much of each the host waits for a batch."""
    config = source_config(source, _form(source, setting))
    steps = 3 if setting.is_imitated else 60
    with capture_calls(setting) as device:
        data = open_data(config, device, setting)
        try:
            trainee = assemble(
                config,
                classes=len(data.classes),
                image_shape=data.image_shape,
                device=device,
                fixed_teacher=torch.nn.Identity,
            )
            graph = GraphedStep(trainee.step, device) if graphed else None
            timer = StepTimer(0)
            unmeasured = warmup_steps() + 3
            for number in range(unmeasured + steps):
                if number == unmeasured:
                    _wait(device)
                    timer = StepTimer(0)
                if graph is None:
                    trainee.step(timer.wait_for(data.train.next).to(device))
                else:
                    graph(timer.wait_for(partial(graph.load_next, data.train.next)))
            _wait(device)
            pace = timer.pace(steps)
        finally:
            data.train.close()
    return {"steps": steps, "ms_of_a_step": 1e3 * pace.step, "waiting_share": pace.waiting_share}


def cases(setting: Setting) -> Cases:
    return [
        *(Case(f"{source}, loader alone", partial(time_loader, source, setting)) for source in SOURCES),
        *(
            Case(f"{source}, with {way} steps", partial(time_wait, source, graphed, setting))
            for source in SOURCES
            for way, graphed in (("eager", False), ("captured", True))
        ),
    ]
