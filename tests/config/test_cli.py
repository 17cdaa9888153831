"""The command: options, help, exit codes, and that a mistake is answered at once, without a traceback or torch."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastmpl import cli, errors
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
    asked, overrides = parse(cli.Train, "fastmpl train", ["a.toml", "--run.keep", "3"])
    assert overrides == {"run.keep": 3}
    assert (asked.config, asked.resume, asked.dry_run) == (Path("a.toml"), "auto", False)


def test_options_may_stand_before_the_file() -> None:
    asked, overrides = parse(cli.Train, "fastmpl train", ["--student.lr", "1e-3", "--data.root", "", "a.toml"])
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
    def fail(asked: cli.Check, config: Config) -> None:
        raise error

    monkeypatch.setitem(cli.CONFIGURED, "check", (cli.Check, fail))
    assert cli.main(["check", str(EXAMPLE)]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(asked: cli.Check, config: Config) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.CONFIGURED, "check", (cli.Check, fail))
    with pytest.raises(ZeroDivisionError):
        cli.main(["check", str(EXAMPLE)])


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
