"""Trains a run: claims its folder, joins its ranks, trains or continues it, and says what came of it."""

from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from fastmpl.config import Config, uses_tf32
from fastmpl.distributed.process_group import join_group, read_place
from fastmpl.distributed.signals import Stopper
from fastmpl.errors import FolderLostError, StorageError
from fastmpl.learners.arithmetic import allow_tf32, search_convolutions
from fastmpl.learners.zero.engine import redirect_logs
from fastmpl.run.callbacks import Callback
from fastmpl.run.closing import Results, closing_lines
from fastmpl.run.ending import store_predictions, write_results
from fastmpl.run.expected_inputs import settle_inputs
from fastmpl.run.folder import State, claim_folder, exit_code_of, write_status
from fastmpl.run.preconditions import require_graph
from fastmpl.run.resuming import asked_step
from fastmpl.run.room import explain_full_disk, require_room
from fastmpl.run.student_file import WEIGHTS
from fastmpl.run.training import Training
from fastmpl.telemetry.output import show_lines


def train(
    config: Config,
    *,
    resume: str = "auto",
    force: bool = False,
    quiet: bool = False,
    report: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Results:
    """Trains the run of `config`, or continues it, and returns its results.

    resume: "auto" continues the newest valid checkpoint of the run's folder, "never" starts over and keeps the old folder
    under another name, and a path continues that checkpoint. force: other settings are accepted where the networks stay
    the same. quiet: shows nothing. report: writes report.html at the end.
    callbacks: called after steps, evaluations and checkpoints (`fastmpl.run.callbacks`).
    Raises subclasses of FastMPLError, each with one sentence for the user.
    """
    folder, here = Path(config.run.output) / config.run.name, read_place()
    require_graph(config)
    config = settle_inputs(config, None if resume == "never" else folder)
    with ExitStack() as held:
        claim = None
        if here.is_first:
            claim = held.enter_context(claim_folder(folder, config, resume, force=force))
            if config.system.engine == "zero":
                held.enter_context(redirect_logs(folder / "deepspeed.log"))
        held.enter_context(allow_tf32(uses_tf32(config)))
        held.enter_context(search_convolutions(config.system.benchmark))
        run: Training | None = None
        try:
            with join_group(here, folder, lambda: held.enter_context(Stopper()), config.system.timeout) as group:
                starts = asked_step(folder, resume) == 0
                run = Training(config, folder, quiet, group, here, starts=starts, callbacks=callbacks)
                with closing(run.networks):
                    run.restore(resume)
                    require_room(folder, run.make_checkpoint(), config, group.ranks)
                    if claim is not None:
                        run.notes += claim.remarks
                        claim.begin(run.step)
                    trained = not run.is_finished
                    if trained:
                        run.go()
                    results = write_results(run)
                    if report:
                        store_predictions(run, results.headline)
            if report and here.is_first:
                from fastmpl.report import write_report  # matplotlib takes a second to import

                write_report(folder)
        except BaseException as error:
            told = explain_full_disk(error, folder)
            is_ours = not isinstance(told, FolderLostError)
            if is_ours and claim is not None and claim.has_begun and run is not None:
                state: State = "interrupted" if run.saving.newest == run.step else "failed"
                with suppress(StorageError):
                    write_status(folder, state, run.step, str(told), exit_code_of(told))
            if told is error:
                raise
            raise told from error
        if here.is_first:
            write_status(folder, "done", run.step, f"{WEIGHTS} is the {results.headline['description']}.")
            if not quiet:
                of_points = run.data.normalisation is None
                show_lines(
                    closing_lines(
                        folder, results, run.monitor.images, report=report, of_points=of_points, trained=trained
                    )
                )
        return results
