"""Whatever is given, a verb ends with an exit code and a sentence: two hundred and more wrong inputs, none a traceback."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmpl import cli
from fastmpl.config.load import KEYS
from tests.report.sample import write_sample

EXPECTED = (2, 3, 5)  # usage or configuration, data, storage
GARBAGE = bytes(range(256)) * 4
PATHS = (
    "",
    ".",
    "nothing",
    "nothing/below",
    "empty",
    "garbage",
    "text.txt",
    "a" * 300,
    "caf\udce9",
    "/proc/self/mem",
    "~nobody/x",
)
ON_RUNS = ("status", "report", "evaluate")
FILES: dict[str, tuple[bytes, ...]] = {  # of a run's folder, and what may be in them
    "config.toml": (b"", GARBAGE, b"[run]\nname = 3\n", b"[data]\nsource = 'folder'\nroot = 'nothing'\n"),
    "STATUS.json": (b"", GARBAGE, b"[]", b"null", b'{"state": 3, "step": [], "message": {}}', b"{" * 5000),
    "metrics.jsonl": (
        b"",
        GARBAGE,
        b"[]\n3\nnull\n{}\n",
        b'{"kind": "train"}\n',
        b'{"kind": "train", "step": "x"}\n' * 3,
    ),
    "results.json": (b"", GARBAGE, b"[]", b'{"last": 3, "selected": [], "steps": "x", "seconds": {}, "versions": 1}'),
    "student.safetensors": (b"", GARBAGE, b"\xff" * 16, b"\x08\0\0\0\0\0\0\0{}      "),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("garbage").write_bytes(GARBAGE)
    Path("text.txt").write_text("not a configuration")
    Path("ok.toml").write_text('[data]\nsource = "digits"\nlabels = 20\nvalidation = 100\nimage_size = 8\n')
    return tmp_path


def ways_to_ask() -> Iterator[tuple[str, ...]]:
    """Wrong command lines that no verb gets as far as training with."""
    yield from ((), ("",), ("trian",), ("--student.lr", "1"), ("\0",), ("train\n",), ("caf\udce9",))
    for verb in cli.VERBS:
        if verb not in ("demo", "doctor"):
            yield (verb,)
        yield (verb, "--nonsense")
        yield (verb, "one", "two", "three", "--debug=3")
    for verb in ("train", "check", "plan", "distill", "ablate", *ON_RUNS, "init", "pack"):
        yield from ((verb, path, *(("out",) if verb == "pack" else ())) for path in PATHS)
    yield from (("predict", path, "text.txt") for path in PATHS)


def wrong_options() -> Iterator[tuple[str, ...]]:
    """A value that the key cannot have, for every key; and options of verbs."""
    yield from ((f"--{key}", "\0") for key in KEYS)
    yield from ((f"--{key}", "-1e999", "x") for key in list(KEYS)[::3])
    yield from (("--resume", "nothing"), ("--data.source", "folder"), ("--data.root", "$NOT_SET"))


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    capsys.readouterr()
    code = cli.main(list(arguments))
    err = capsys.readouterr().err
    assert code in EXPECTED, (arguments, code, err)
    assert err.strip() and "Traceback" not in err, (arguments, err)


def test_wrong_command_lines_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = list(ways_to_ask())
    assert len(every) > 150
    for arguments in every:
        assert_refused(capsys, arguments)


def test_wrong_values_of_every_key_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = list(wrong_options())
    assert len(every) > 100
    for options in every:
        assert_refused(capsys, ("train", "ok.toml", *options))
    assert not Path("runs").exists()  # nothing of a start that failed is left behind


READERS = {
    "STATUS.json": ("status",),
    "results.json": ("report",),
    "metrics.jsonl": ("status", "report"),
}  # others: all


@pytest.mark.parametrize("file", FILES)
def test_damaged_run_folders_are_read_or_refused(here: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    write_sample(here / "whole")
    (here / "whole/STATUS.json").write_text(json.dumps({"state": "done", "step": 3200, "message": ""}))
    for number, content in enumerate(FILES[file]):
        run = shutil.copytree(here / "whole", here / f"run {number}")
        (run / file).write_bytes(content)
        for verb in READERS.get(file, ON_RUNS):
            code = cli.main([verb, str(run)])
            err = capsys.readouterr().err
            assert code in (0, *EXPECTED), (verb, content[:40], code, err)
            assert bool(err.strip()) == bool(code) and "Traceback" not in err, (verb, content[:40], err)
