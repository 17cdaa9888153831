"""What a step does with the device's time: a trace for a viewer, the kernels that take most, and the share it is idle."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.runs import capture_calls, make_batches, make_trainee, warmup_steps
from benchmarks.gpu.step_times import FEEDBACKS, SIZES, SMALL, config_of
from benchmarks.records import Row
from fastmpl.step.step_graph import GraphedStep

STEPS: Final = 3
SHOWN: Final = 12  # kernels in the row; the trace has all
LONGEST_NAME: Final = 60


def trace(name: str, graphed: bool, setting: Setting) -> Row:
    """Three steps under torch's profiler; the trace is a file in the record's folder."""
    size = (SMALL if setting.is_imitated else SIZES)[name]
    config = config_of(size, FEEDBACKS["exact"], setting)
    with capture_calls(setting) as device:
        batch = make_batches(config, 1, device, size.classes)[0]
        eager = make_trainee(config, device, size.classes).step
        step: Callable[[], object] = partial(GraphedStep(eager, device) if graphed else eager, batch)
        for _ in range(warmup_steps() + 2 if graphed else 3):
            step()
        activities = [ProfilerActivity.CPU, *([] if setting.is_imitated else [ProfilerActivity.CUDA])]
        with profile(activities=activities) as found:
            began = time.perf_counter()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
    file = setting.out / f"trace_{'captured' if graphed else 'eager'}.json.gz"
    found.export_chrome_trace(str(file))
    attribute = "self_cpu_time_total" if setting.is_imitated else "self_device_time_total"
    times = {event.key: float(getattr(event, attribute)) / STEPS for event in found.key_averages()}
    longest = sorted(times.items(), key=lambda item: -item[1])[:SHOWN]
    busy = sum(times.values()) * STEPS / 1e6 / seconds
    return {
        "trace": file.name,
        "ms_of_a_step": 1e3 * seconds / STEPS,
        "busy_share": busy,
        **{f"us of {key[:LONGEST_NAME]}": us for key, us in longest},
    }


def cases(setting: Setting) -> Cases:
    name = next(iter(SMALL)) if setting.is_imitated else list(SIZES)[1]
    return [
        Case(f"{name}, {way}", partial(trace, name, graphed, setting))
        for way, graphed in (("eager", False), ("captured", True))
    ]
