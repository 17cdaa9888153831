"""The faults that fastmpl must survive, and the tests that inject each: one row a fault.

`python -m tests.faults.matrix` writes the table of docs/reliability.md; `--check` fails where it would change. Outcomes are
those of the last `make test-faults`, which keeps them in tests/faults/outcomes.json.
"""

import json
import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "reliability.md"
OUTCOMES: Final = Path(__file__).with_name("outcomes.json")
TABLE: Final = re.compile(r"<!-- faults -->\n.*?<!-- /faults -->", re.DOTALL)


class Row(NamedTuple):
    """A fault, what must come of it, and the functions that test it as `folder/file.py::function`."""

    fault: str
    expected: str
    tests: tuple[str, ...]


ROWS: Final = (
    Row(
        "none: continued after any step, in fine-tuning too",
        "weights, optimisers, average and metrics are equal bit for bit",
        (
            "run/test_trainer.py::test_a_stopped_run_continues_bit_for_bit",
            "run/test_trainer.py::test_every_part_of_the_state_is_continued",
            "run/test_trainer.py::test_a_run_stopped_in_its_fine_tuning_continues_there",
        ),
    ),
    Row(
        "another number of ranks, or other data",
        "equal up to rounding; other data are refused",
        (
            "ranks/test_runs.py::test_another_number_of_ranks_continues_from_the_means",
            "ranks/test_bad_files.py::test_ranks_that_find_other_images_are_told_before_the_first_step",
        ),
    ),
    Row(
        "TERM to a rank, to DeepSpeed's launcher, to its command",
        "saved, `interrupted`, every process gone within 30 s",
        (
            "ranks/test_runs.py::test_ranks_that_one_signal_stops_continue_bit_for_bit",
            "ranks/test_launchers.py::test_ranks_save_and_end_after_what_started_them",
        ),
    ),
    Row(
        "KILL to DeepSpeed's launcher or command",
        "the ranks notice, save and end",
        ("ranks/test_launchers.py::test_ranks_save_and_end_after_what_started_them",),
    ),
    Row(
        "KILL to a rank",
        "the others name it and end with 6; a restart ends as if nothing had been",
        (
            "ranks/test_runs.py::test_the_ranks_that_are_left_say_which_one_was_lost",
            "ranks/test_launchers.py::test_ranks_that_were_killed_start_again_together_and_end_as_if_they_had_not_been",
            "faults/test_restarts.py::test_a_killed_run_that_starts_again_equals_one_that_was_not_killed",
        ),
    ),
    Row(
        "STOP to a rank, the first included",
        "its rank and operation are named within `system.timeout`",
        ("ranks/test_runs.py::test_a_rank_that_stands_still_is_named_with_its_operation_within_the_timeout",),
    ),
    Row(
        "a kill at every write, sync and rename of a save",
        "the checkpoint before is the newest valid one",
        ("run/test_checkpoint.py::test_a_kill_at_any_write_sync_or_rename_leaves_the_one_before",),
    ),
    Row(
        "a file of a checkpoint is missing, cut, altered, or right in its hash and wrong in its content",
        "the one before is used, and the file is named",
        (
            "run/test_checkpoint.py::test_a_damaged_file_is_named_and_the_one_before_is_used",
            "ranks/test_runs.py::test_a_bad_file_of_one_rank_makes_all_use_the_checkpoint_before",
            "faults/test_forged_checkpoints.py::test_a_forged_checkpoint_is_reported_and_the_one_before_is_used",
        ),
    ),
    Row(
        "a full disk: before the first step, at a periodic save, at the last",
        "refused; goes on; exit code 5 with the amount",
        (
            "faults/test_full_disk.py::test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step",
            "faults/test_full_disk.py::test_a_disk_that_is_full_at_the_start_is_one_sentence_and_leaves_nothing",
            "faults/test_full_disk.py::test_a_disk_that_fills_up_while_training",
        ),
    ),
    Row(
        "an output folder that is read-only or cannot be made",
        "one sentence before the first step",
        (
            "faults/test_places.py::test_an_output_that_cannot_be_written_is_refused_before_the_first_step",
            "faults/test_places.py::test_an_output_that_cannot_be_made_is_refused",
        ),
    ),
    Row(
        "two runs in one folder",
        "the second is refused with the first's process and host",
        (
            "run/test_trainer.py::test_a_second_run_in_one_folder_is_refused_with_the_first_ones_process",
            "run/test_resuming.py::test_starting_over_moves_no_run_that_is_running",
        ),
    ),
    Row(
        "not a number, or infinity, on one rank",
        "that update is skipped on all ranks, and counted",
        (
            "faults/test_ranks_not_finite.py::test_an_update_that_is_not_finite_on_one_rank_is_skipped_on_all",
            "ranks/test_zero.py::test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all",
        ),
    ),
    Row(
        "more than 10 skipped updates in 100 steps",
        "exit code 4, and a step that `fastmpl replay` repeats",
        (
            "run/test_divergence.py::test_a_run_ends_whatever_the_length_of_its_lines",
            "run/test_divergence.py::test_a_run_that_diverged_leaves_a_step_that_fails_again",
        ),
    ),
    Row(
        "images that are cut, empty, garbage, of a wrong kind, enormous",
        "`check` lists each; training leaves them out, alike on all ranks",
        ("ranks/test_bad_files.py::test_a_run_over_all_bad_files_neither_stops_nor_differs_between_ranks",),
    ),
    Row(
        "an image vanishes while training",
        "replaced by the same one on all ranks, and counted",
        ("ranks/test_bad_files.py::test_an_image_that_vanishes_while_ranks_train_is_replaced_and_counted",),
    ),
    Row(
        "a class without validation images, one image a class, hostile class names",
        "one sentence, or a right run and an escaped report",
        (
            "data/readers/test_folder.py::test_what_cannot_be_trained_on_is_one_sentence",
            "data/readers/test_folder.py::test_one_image_a_class_leaves_none_for_validation",
            "report/test_report.py::test_a_hostile_name_is_shown_and_never_run",
        ),
    ),
    Row(
        "a pickle, another path, a link or a pipe in the place of any file",
        "refused; nothing runs and nothing is waited for",
        (
            "faults/test_hostile_files.py::test_a_pickle_in_the_place_of_any_file_is_never_run",
            "faults/test_hostile_files.py::test_a_pipe_in_the_place_of_a_file_is_not_waited_for",
            "run/test_checkpoint.py::test_a_manifest_that_names_other_files_is_refused",
            "faults/test_fuzz.py::test_no_reader_fails_otherwise_than_by_a_sentence",
        ),
    ),
    Row(
        "a malformed configuration",
        "exit code 2 and the key, in less than a second",
        (
            "config/test_load.py::test_a_malformed_file_is_refused_within_a_second",
            "config/test_load.py::test_a_bad_value_is_named_with_what_is_allowed",
        ),
    ),
    Row(
        "other settings between save and resume",
        "the keys are listed; what breaks exactness needs `--force`",
        (
            "run/test_trainer.py::test_other_settings_in_the_same_folder_are_refused_by_name",
            "faults/test_restarts.py::test_other_settings_are_forced_where_the_networks_stay_the_same",
        ),
    ),
    Row(
        "a checkpoint of an older or a newer schema",
        "migrated; refused with both versions",
        (
            "run/test_old_checkpoint.py::test_a_run_of_version_0_1_0_continues_to_its_end",
            "faults/test_forged_checkpoints.py::test_a_forged_checkpoint_is_reported_and_the_one_before_is_used",
        ),
    ),
    Row(
        "no compiler, no programs, no home folder that can be written",
        "trains",
        ("faults/test_places.py::test_a_run_needs_no_compiler_no_home_and_no_shared_memory",),
    ),
    Row(
        "the wrong `apex`",
        "ignored with one line in `doctor`",
        ("commands/test_doctor.py::test_the_wrong_apex_is_ignored_with_one_line",),
    ),
    Row(
        "the launcher's port is in use",
        "another is taken",
        ("ranks/test_launchers.py::test_deepspeed_trains_beside_a_run_that_has_its_port",),
    ),
    Row(
        "a logger raises",
        "said once; training goes on",
        ("telemetry/test_metrics.py::test_one_logger_that_raises_does_not_silence_the_others",),
    ),
    Row(
        "Ctrl-C once, twice; no terminal; 40 columns; the terminal goes away",
        "saved and 130; at once, with the cursor back; plain lines; goes on",
        (
            "faults/test_ctrl_c.py::test_ctrl_c",
            "commands/test_terminal.py::test_a_transcript_is_as_recorded",
            "run/test_output_gone.py::test_a_hang_up_saves_the_run_unless_it_is_ignored",
            "run/test_output_gone.py::test_a_run_goes_on_when_the_reader_of_its_output_ends",
        ),
    ),
    Row(
        "faults drawn from this list by a seed",
        "the continued run equals the uninterrupted one",
        ("faults/test_soak.py::test_runs_among_faults_end_as_the_undisturbed_one",),
    ),
)


def in_matrix(node: str) -> bool:
    """Whether a test is one of the matrix. node: as pytest names it, with its parameters."""
    name = node.partition("[")[0].removeprefix("tests/")
    return any(name in row.tests for row in ROWS)


def outcome(row: Row, outcomes: dict[str, list[int]]) -> str:
    """`12 passed`, `11 passed, 1 failed`, or that tests were not run."""
    found = [outcomes.get(test) for test in row.tests]
    if any(one is None for one in found):
        return "not run"
    passed, failed, skipped = (sum(one[at] for one in found if one) for at in range(3))
    words = ((passed, "passed"), (failed, "failed"), (skipped, "skipped"))
    return ", ".join(f"{count} {word}" for count, word in words if count)


def format_table() -> str:
    outcomes = json.loads(OUTCOMES.read_text()) if OUTCOMES.is_file() else {}
    lines = ["| | fault | what comes of it | tests | last outcome |", "|---:|---|---|---|---|"]
    for number, row in enumerate(ROWS, 1):
        files = ", ".join(f"`tests/{file}`" for file in dict.fromkeys(test.partition("::")[0] for test in row.tests))
        lines.append(f"| {number} | {row.fault} | {row.expected} | {files} | {outcome(row, outcomes)} |")
    return "\n".join(["<!-- faults -->", *lines, "<!-- /faults -->"])


def main() -> int:
    page = PAGE.read_text()
    made = TABLE.sub(lambda _: format_table(), page)
    if "--check" in sys.argv:
        return int(made != page)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
