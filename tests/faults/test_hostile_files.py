"""Nothing that is read runs, nothing that is no file is waited for, and nothing shown is obeyed by a terminal."""

import ast
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from fastmpl.errors import ConfigError, FastMPLError
from fastmpl.telemetry.progress import Progress
from fastmpl.untrusted import open_regular, printable, read_bytes, read_json_object
from tests.faults.readers import READERS

ROOT = Path(__file__).parents[2]
HIDDEN = "a\x1b[2J\u202eb\u2028c\u200fd\x9b\ud800"


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.file), 0o755)


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_the_place_of_any_file_is_never_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "input").mkdir()
    file = READERS[name].make(tmp_path / "input")
    for protocol in (0, 2, 4):
        file.write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol))
        with suppress(FastMPLError):
            READERS[name].read(tmp_path / "input")
    assert not (tmp_path / "ran").exists()


def test_no_source_of_ours_unpickles() -> None:
    """Besides torch.load(weights_only=True). CIFAR's own files are read by torchvision once their hash is the authors'."""
    for path in sorted((ROOT / "fastmpl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", path
            if called == "np.load":
                assert keywords.get("allow_pickle") == "False", path
            assert called not in ("pickle.load", "pickle.loads", "joblib.load", "yaml.load", "marshal.loads"), path


PROGRAM = """
import sys
from pathlib import Path
from fastmpl.errors import FastMPLError
from tests.faults.readers import READERS
reader, folder = READERS[sys.argv[1]], Path(sys.argv[2])
try:
    reader.read(folder)
except (FastMPLError, OSError) as error:
    print(error)
"""


@pytest.mark.parametrize(
    "name", ["configuration", "status", "metrics", "results", "store's header", "file list", "picture"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    file = READERS[name].make(tmp_path / "input")
    file.unlink()
    os.mkfifo(file)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(tmp_path / "input")],
        env=environment,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", ["pipe", "device", "link to itself", "folder"])
def test_what_is_no_regular_file_is_an_error_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(OSError, match=r"regular file|symbolic links|directory"):
        os.close(open_regular(str(path)))


def test_json_that_is_too_deep_or_no_object_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"[" * 100_000, b"[1]", b"\xff", b"{" * 3, b"9" * 9000):
        path.write_bytes(content)
        with pytest.raises(ValueError):  # noqa: PT011  # of json, of decoding, or ours
            read_json_object(path)
    path.write_bytes(b'{"a": 1}')
    assert read_json_object(path) == {"a": 1}
    assert read_bytes(path, 3) == b'{"a'


def test_what_a_terminal_would_obey_is_escaped_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    shown = "a\\x1b[2J\\u202eb\\u2028c\\u200fd\\x9b\\ud800"
    assert printable(HIDDEN) == shown
    assert str(ConfigError(HIDDEN)) == f"Config: {shown}"
    with Progress(HIDDEN, 3) as progress:
        progress.show_note(HIDDEN)
    assert capsys.readouterr().out.count(shown) == 2
    assert printable("Ærøskøbing 東京 \U0001f600") == "Ærøskøbing 東京 \U0001f600"
