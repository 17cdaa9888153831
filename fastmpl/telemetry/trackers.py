"""Weights & Biases and MLflow as loggers of a run, chosen by `run.trackers`.

Both packages are optional, and may wait for a network: each runs behind a thread of its own (`Background`), so that a slow
server costs a run nothing, and one that fails is said once and left out. Without a word of the user's, both write into
the run's folder alone: WANDB_MODE=online and MLFLOW_TRACKING_URI send the lines elsewhere.
"""

import hashlib
import importlib.util
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fastmpl.telemetry.loggers import Line, Logger, TensorBoard

PATIENCE: Final = 20.0  # seconds that a tracker has at the end of a run for what it has not sent yet
WAITING_AT_MOST: Final = 10_000  # lines

Facts = Mapping[str, Any]  # the configuration of the run, by dotted key


def open_trackers(names: str, folder: Path, name: str, facts: Facts) -> list[Logger]:
    """The loggers of `run.trackers`. auto: TensorBoard, where it is installed. Nothing is imported before a line comes."""
    if names == "auto":
        names = "tensorboard" if importlib.util.find_spec("tensorboard") else ""
    make: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
        "wandb": lambda: Background(WandB(folder, name, facts)),
        "mlflow": lambda: Background(MLflow(folder, name, facts)),
    }
    return [make[one]() for one in names.split(",") if one]


def scalars_of(line: Line) -> dict[str, float]:
    """The numbers of a line by the names of their curves: `train/student_loss`, `test/average_accuracy`."""
    if line["kind"] == "train":
        found = {f"train/{name}": value for name, value in line.items() if name not in ("kind", "step")}
    else:
        found = {f"{line['split']}/{line['network']}_{name}": line[name] for name in ("accuracy", "loss")}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


class WandB:
    """Writes to Weights & Biases: offline into FOLDER/wandb, which `wandb sync` sends, or as WANDB_MODE says."""

    def __init__(self, folder: Path, name: str, facts: Facts) -> None:
        self._folder, self._name, self._facts = folder, name, facts
        self._run: Any = None

    def write(self, line: Line) -> None:
        """Records the numbers of a line over its step."""
        if self._run is None:
            import wandb

            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "fastmpl"),
                name=self._name,
                dir=str(self._folder),
                id=hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:16],  # a continued run is the same
                resume="allow",
                mode=os.environ.get("WANDB_MODE", "offline"),
                config=dict(self._facts),
                settings=wandb.Settings(console="off", silent=True),
            )
            self._run.define_metric("*", step_metric="step")
        self._run.log({"step": line["step"], **scalars_of(line)})

    def resume(self, step: int) -> None:
        """W&B forgets nothing: the lines after `step` appear twice."""

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()


class MLflow:
    """Writes to MLflow: into FOLDER/mlflow, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, name: str, facts: Facts) -> None:
        self._folder, self._name, self._facts = folder, name, facts
        self._client: Any = None
        self._run = ""

    def write(self, line: Line) -> None:
        """Records the numbers of a line over its step."""
        if self._client is None:
            self._open()
        for name, value in scalars_of(line).items():
            self._client.log_metric(self._run, name, value, step=line["step"])

    def _open(self) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the small package has no database
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or (self._folder.resolve() / "mlflow").as_uri()
        client = MlflowClient(tracking_uri=place)
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fastmpl")
        found = client.get_experiment_by_name(wanted)
        experiment = found.experiment_id if found is not None else client.create_experiment(wanted)
        self._run = client.create_run(experiment, run_name=self._name).info.run_id
        for key, value in self._facts.items():
            client.log_param(self._run, key, value)
        self._client = client

    def resume(self, step: int) -> None:
        """MLflow forgets nothing: a continued run is another run of the experiment."""

    def close(self) -> None:
        """Ends the run."""
        if self._client is not None:
            self._client.set_terminated(self._run)


class Background:
    """A logger whose calls are made by a thread of its own. What they raise is raised by the next call."""

    def __init__(self, logger: Logger, patience: float = PATIENCE, waiting: int = WAITING_AT_MOST) -> None:
        """patience: seconds to wait at the end. waiting: the most calls that may wait to be made."""
        self.name, self._patience = type(logger).__name__, patience
        self._logger = logger
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(waiting)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def write(self, line: Line) -> None:
        """Records one line, soon."""
        self._enqueue(lambda: self._logger.write(line))

    def resume(self, step: int) -> None:
        """Discards the lines after `step`, before any that is written later."""
        self._enqueue(lambda: self._logger.resume(step))

    def close(self) -> None:
        """Waits for what is not written yet, for `patience` seconds. Raises TimeoutError where that is not enough."""
        if self._thread is None:
            return
        self._enqueue(self._logger.close)
        self._enqueue(None)
        self._thread.join(self._patience)
        self._raise()
        if self._thread.is_alive():
            raise TimeoutError(f"it did not finish within {self._patience:.0f} s, and lines may be missing there")

    def _enqueue(self, call: Callable[[], None] | None) -> None:
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"fastmpl {self.name}", daemon=True)
            self._thread.start()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            raise TimeoutError("it does not keep up with the run") from None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # third-party code may raise anything, also for a missing package
                self._error = error
                return
