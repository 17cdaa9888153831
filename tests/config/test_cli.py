"""The command: options, help, exit codes, and that a mistake is answered at once, without a traceback or torch."""

import errno
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import get_type_hints

import pytest

from fastmpl import __version__, cli, errors
from fastmpl.config import Config
from fastmpl.config.load import KEYS
from fastmpl.config.options import parse
from fastmpl.distributed.threads import cores, limit_threads

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "launch/configs/digits.toml"


def fastmpl(*arguments: str | Path, entry: tuple[str, ...] = ("-m", "fastmpl")) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "COLUMNS": "200"}
    command = [sys.executable, *entry, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_a_mistake_is_exit_code_2_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cfg.toml"
    path.write_text("[studnet]\nlr = 0.1\n")
    done = fastmpl("train", path)
    assert done.returncode == 2
    assert done.stderr == f"Config: unknown key 'studnet.lr' ({path}). Did you mean 'student.lr'?\n"


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    done = fastmpl("train", tmp_path / "none.toml", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_neither_help_nor_mistakes_import_torch() -> None:
    code = (
        "import sys; from fastmpl import cli; code = cli.main(['train', 'none.toml', '--student.lr', '1']);"
        "assert code == 2; assert cli.main(['--help']) == 0; assert 'torch' not in sys.modules"
    )
    done = fastmpl(code, entry=("-c",))
    assert done.returncode == 0, done.stderr


def test_a_mistake_is_answered_within_a_second_of_cpu(tmp_path: Path) -> None:
    path = tmp_path / "cfg.toml"
    path.write_text("x = " + "[" * 2**20)
    before = os.times()
    assert fastmpl("train", path).returncode == 2
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1


@pytest.mark.parametrize(
    "arguments",
    [(), ("trian",), ("train",), ("train", EXAMPLE, "--student.lr"), ("train", EXAMPLE, "--data.noise", "pair")],
    ids=["nothing", "no verb", "no file", "no value", "half a pair"],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str | Path, ...]) -> None:
    done = fastmpl(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_prints_what_would_be_trained() -> None:
    options = [
        "--student.lr",
        "0.3",
        "--data.noise",
        "pair",
        "0.2",
        "--data.flip=true",
        "--student.label-smoothing",
        "0.1",
    ]
    done = fastmpl("train", EXAMPLE, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    resolved = Config.model_validate(tomllib.loads(done.stdout))
    assert resolved.data.noise == ("pair", 0.2)
    assert resolved.data.flip
    assert (resolved.student.lr, resolved.student.label_smoothing) == (0.3, 0.1)
    assert resolved.data.labels == 20  # the file's


def test_the_entry_for_several_ranks_takes_the_launchers_argument_and_the_same_options() -> None:
    done = fastmpl("--local_rank=1", EXAMPLE, "--dry-run", "--run.seed", "7", entry=(str(ROOT / "launch/train.py"),))
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout)["run"]["seed"] == 7


def keys_shown(flag: str) -> set[str]:
    return set(re.findall(r"--(\w+\.\w+)", fastmpl("train", flag).stdout))


def test_help_shows_the_keys_that_matter_and_help_all_every_key() -> None:
    assert keys_shown("--help-all") == set(KEYS)
    assert keys_shown("--help") < set(KEYS)
    assert {"student.lr", "method.name", "feedback.kind", "data.labels", "run.steps"} <= keys_shown("--help")
    assert 35 <= len(keys_shown("--help")) <= 45


def test_help_gives_default_and_sentence() -> None:
    shown = fastmpl("train", "--help").stdout
    assert "Learning rate after the warm-up. (default: 0.05)" in shown
    assert "--feedback.kind {exact,per_example,scalar,off}" in shown


def test_only_options_that_were_given_override() -> None:
    asked, overrides = parse(cli.TrainOptions, "fastmpl train", ["a.toml", "--run.keep", "3"])
    assert overrides == {"run.keep": 3}
    assert (asked.config, asked.resume, asked.dry_run) == (Path("a.toml"), "auto", False)


def test_options_may_stand_before_the_file() -> None:
    asked, overrides = parse(cli.TrainOptions, "fastmpl train", ["--student.lr", "1e-3", "--data.root", "", "a.toml"])
    assert overrides == {"student.lr": 1e-3, "data.root": ""}
    assert asked.config == Path("a.toml")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("a"), 2),
        (errors.DivergedError("a"), 4),
        (errors.StorageError("a"), 5),
        (errors.PeerLostError("a"), 6),
        (errors.Interrupted("a"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_way_to_end_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail(options: cli.CheckOptions, config: Config) -> None:
        raise error

    monkeypatch.setitem(cli.WITH_CONFIG, "check", (cli.CheckOptions, fail))
    assert cli.main(["check", str(EXAMPLE)]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_ours_is_one_sentence_with_a_number_and_debug_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: cli.CheckOptions, config: Config) -> None:
        raise ZeroDivisionError("of\ntwo lines")

    monkeypatch.setitem(cli.WITH_CONFIG, "check", (cli.CheckOptions, fail))
    said = []
    for flags in ([], [], ["--debug"]):
        assert cli.main(["check", str(EXAMPLE), *flags]) == 70
        said.append(capsys.readouterr().err)
    number = re.search(r"number ([0-9a-f]{8}) \(ZeroDivisionError at test_cli.py:fail:\d+: of two lines\)", said[0])
    assert number and len(said[0].splitlines()) == 1
    assert said[1] == said[0]
    assert "Traceback" in said[2] and number[1] in said[2]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (MemoryError(), 5, "Memory: more memory is needed than there is"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "Storage: the output cannot be written: No space left"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, sentence: str
) -> None:
    def fail(options: cli.CheckOptions, config: Config) -> None:
        raise error

    monkeypatch.setitem(cli.WITH_CONFIG, "check", (cli.CheckOptions, fail))
    monkeypatch.setattr("sys.stdout", sys.stdout)  # put back afterwards
    assert cli.main(["check", str(EXAMPLE)]) == code
    assert capsys.readouterr().err.startswith(sentence)


def test_a_closed_stdout_and_a_poor_locale_are_no_errors() -> None:
    words = "import sys; from fastmpl import cli; sys.exit(cli.main(['--help']))"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "PYTHONIOENCODING": "ascii"}
    for redirection in (">&-", "2>&-", ">/dev/null"):
        line = f'{sys.executable} -c "{words}" {redirection}'
        done = subprocess.run(
            line, shell=True, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_the_encoding_lacks_is_escaped() -> None:
    words = "from fastmpl.cli.endings import open_terminal, say; open_terminal(); say('Größe, \u732b')"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Gr\\xf6\\xdfe, \\u732b\n"


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastmpl {__version__}\n"
    assert metadata.version("fastmpl") == __version__


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("trian", "Config: fastmpl has no verb 'trian'. Did you mean 'train'?"),
        ("config.toml", "Config: fastmpl has no verb 'config.toml'. Did you mean 'fastmpl train config.toml'?"),
        ("--student.lr", "Config: fastmpl has no verb '--student.lr'. The verbs are train, check,"),
    ],
)
def test_an_unknown_verb_is_named(capsys: pytest.CaptureFixture[str], verb: str, sentence: str) -> None:
    assert cli.main([verb]) == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_ranks_share_the_cores() -> None:
    environment = {"LOCAL_WORLD_SIZE": str(cores() * 2)}
    assert limit_threads(0, environment) == 1
    assert environment["OMP_NUM_THREADS"] == "1"
    assert limit_threads(0, {}) == cores()


def test_threads_of_the_configuration_win_over_those_of_the_environment() -> None:
    environment = {"OMP_NUM_THREADS": "3"}
    assert limit_threads(0, environment) == 3
    assert limit_threads(5, environment) == 5
    assert environment["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("plan", EXAMPLE, "--memory", "nan"), "--memory nan"),  # which is below no bound, and above none
        (("plan", EXAMPLE, "--ranks", "0"), "--ranks 0"),
        (("plan", EXAMPLE, "--classes", "-3"), "--classes -3"),
        (("distill", EXAMPLE, "--top-k", "-1"), "--top-k -1"),
        (("probe", EXAMPLE, "--rates", "0.1", "nan"), "--rates nan"),
        (("ablate", EXAMPLE, "--jobs", "-1"), "--jobs -1"),
        (("pack", ".", "out", "--quality", "101"), "--quality 101"),
        (("train", EXAMPLE, "--restarts", "-1"), "--restarts -1"),
    ],
)
def test_a_number_outside_its_bounds_is_refused_before_the_verb_begins(
    arguments: tuple[object, ...], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(list(map(str, arguments))) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Config: {found} cannot be used: a number ")
    assert said.count("\n") == 1


def test_every_number_that_a_verb_takes_has_bounds() -> None:
    for verb, options in cli.VERBS.items():
        hints = get_type_hints(options, include_extras=True)
        numbers = {name: kind for name, kind in hints.items() if re.search(r"\b(int|float)\b", str(kind))}
        unbounded = [name for name, kind in numbers.items() if "Bounds" not in str(kind)]
        assert unbounded in ([], ["share"]), verb  # the share is refused by the planner, which says what it is of
