"""No step waits for the device: with metrics and a loader's thread, eager and captured, under CUDA's debug mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks.gpu.cases import Case, Cases, Setting
from benchmarks.gpu.loading import SOURCES, open_data, source_config
from benchmarks.gpu.runs import FORMS, Form, capture_calls, make_batches, make_config, make_trainee, warmup_steps
from benchmarks.records import Row
from fastmpl.data.batch import Batch
from fastmpl.run.build import Trainee, assemble
from fastmpl.step.step_graph import GraphedStep
from fastmpl.telemetry.metrics import Meter

STEPS = 4  # that are watched


@contextmanager
def refuse_synchronisation() -> Iterator[None]:
    """A call that waits for the device is an error, in every thread of this process."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _watch(trainee: Trainee, following: Callable[[], Batch], device: torch.device, graphed: bool) -> Row:
    """Takes the first steps unwatched, which allocate and choose algorithms; then some that must not wait."""
    meter = Meter(device, lines=STEPS)
    trainee.step.watch = meter.add
    graph = GraphedStep(trainee.step, device) if graphed else None

    def advance() -> None:
        if graph is None:
            trainee.step(following().to(device))
        else:
            graph(graph.load_next(following))

    for _ in range(trainee.step.every * warmup_steps() + 2):
        advance()
    with refuse_synchronisation():
        for number in range(STEPS):
            advance()
            meter.finish(number)
    lines = len(meter.read())
    return {"passed": lines == STEPS, "steps": STEPS}


def watch_form(form: Form, graphed: bool, setting: Setting) -> Row:
    """Batches that lie on the device already."""
    config = make_config(form)
    with capture_calls(setting) as device:
        batches = iter(make_batches(config, config.feedback.every * warmup_steps() + 2 + STEPS, device))
        return _watch(make_trainee(config, device), lambda: next(batches), device, graphed)


def watch_loader(source: str, graphed: bool, setting: Setting) -> Row:
    """Batches that the loader's thread makes meanwhile."""
    config = source_config(source, {})
    with capture_calls(setting) as device:
        data = open_data(config, device, setting)
        trainee = assemble(
            config,
            classes=len(data.classes),
            image_shape=data.image_shape,
            device=device,
            fixed_teacher=torch.nn.Identity,
        )
        try:
            return _watch(trainee, data.train.next, device, graphed)
        finally:
            data.train.close()


def cases(setting: Setting) -> Cases:
    ways = {"eager": False, "captured": True}
    loaders = [
        Case(f"{source} from the loader, {way}", partial(watch_loader, source, graphed, setting))
        for source in SOURCES
        for way, graphed in ways.items()
    ]
    forms = FORMS if not setting.is_imitated else dict(list(FORMS.items())[:2])
    return loaders + [
        Case(f"{name}, {way}", partial(watch_form, form, graphed, setting), 30)
        for name, form in forms.items()
        for way, graphed in ways.items()
    ]
