"""A file, overrides and defaults become one configuration; every mistake is one sentence; what is saved loads equal."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from pydantic import ValidationError

from fastmpl.commands.status import status
from fastmpl.config import Config, ConfigError, difference, load, save
from fastmpl.config.load import KEYS, LARGEST, REMOVED
from fastmpl.config.paths import suggest_run
from tests.examples import EXAMPLES, NOT_RUN

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The name of a file in the working folder, as a user would give it."""
    monkeypatch.chdir(tmp_path)
    return Path("cfg.toml")


def refusal(path: Path, text: str | bytes, overrides: dict[str, Any] | None = None) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as refused:
        load(path, overrides)
    return str(refused.value)


def test_an_empty_file_is_all_defaults(path: Path) -> None:
    path.write_text("")
    assert load(path) == Config()


def test_overrides_lie_over_the_file_and_the_file_over_the_defaults(path: Path) -> None:
    path.write_text("[student]\nlr = 0.2\nclip = 1.0\n")
    config = load(path, {"student.lr": 0.3})
    assert (config.student.lr, config.student.clip, config.student.momentum) == (0.3, 1.0, 0.9)


def test_overrides_may_be_nested(path: Path) -> None:
    path.write_text("")
    assert load(path, {"student": {"lr": 0.3}}) == load(path, {"student.lr": 0.3})


def test_numbers_of_numpy_are_numbers(path: Path) -> None:
    path.write_text("")
    found = load(path, {"run.steps": np.int64(30), "student.lr": np.float32(0.25), "data.flip": np.bool_(True).item()})
    assert (found.run.steps, found.student.lr) == (30, 0.25)
    assert type(found.run.steps) is int
    with pytest.raises(ConfigError, match=r"run\.steps = 0 "):
        load(path, {"run.steps": np.int64(0)})


def test_an_override_can_mend_a_bad_value_of_the_file(path: Path) -> None:
    path.write_text("[student]\nlr = -1.0\n")
    assert load(path, {"student.lr": 0.3}).student.lr == 0.3


def test_what_is_saved_loads_equal(path: Path) -> None:
    path.write_text(
        '[data]\nnoise = ["pair", 0.45]\nrand_augment = [0, 0]\n[student]\nlr = 1e-7\n[run]\nname = "a.b-c_D"\n'
    )
    config = load(path)
    assert load(save(config, "saved.toml")) == config


def test_difference_names_the_keys_that_differ(path: Path) -> None:
    path.write_text('[student]\nlr = 0.2\n[data]\nnoise = ["pair", 0.45]\n')
    assert difference(load(path), Config()) == ["data.noise", "student.lr"]
    assert difference(Config(), Config()) == []


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().student.lr = 0.3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "name", "meant"),
    [
        ("[studnet]\nlr = 3", "studnet.lr", "student.lr"),
        ("[feedback]\nweigth = 1.0", "feedback.weigth", "feedback.weight"),
        ("[run]\nrand_augment = [2, 10]", "run.rand_augment", "data.rand_augment"),
        ("[optimiser]\naverage = 0.9", "optimiser.average", "student.average"),
        ("steps = 3", "steps", "run.steps' or 'finetune.steps"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_one(path: Path, text: str, name: str, meant: str) -> None:
    assert refusal(path, text) == f"Config: unknown key '{name}' (cfg.toml). Did you mean '{meant}'?"


@pytest.mark.parametrize("name", ["nonsense.x", "lr.x"])
def test_a_key_like_no_other_points_to_the_list_of_keys(path: Path, name: str) -> None:
    sentence = f"Config: unknown key '{name}' (cfg.toml). `fastmpl train --help-all` lists every key."
    assert refusal(path, f"{name} = 3") == sentence


def test_a_section_given_as_a_value_is_said_to_be_one(path: Path) -> None:
    sentence = "Config: student (cfg.toml) is a section, not a value. Write [student], and its keys below."
    assert refusal(path, "student = 3") == sentence


NAMES = "^[A-Za-z0-9._-]{1,64}$"
NOISE = '["none", "pair", "symmetric" or "brightness", a number from 0 to 1]'


@pytest.mark.parametrize(
    ("key", "text", "shown", "expected"),
    [
        ("student.lr", '"0.1"', '"0.1"', "a number from 0 to 1000"),
        ("student.lr", "-1", "-1", "a number from 0 to 1000"),
        ("student.lr", "nan", "nan", "a number from 0 to 1000"),
        ("student.lr", "{ a = 1 }", "{ a table }", "a number from 0 to 1000"),
        ("student.lr", "1" + "0" * 400, "a number of many digits", "a number from 0 to 1000"),
        ("student.momentum", "1.0", "1.0", "a number from 0 to below 1"),
        ("student.norm", "'none'", '"none"', '"batch", "sync" or "group"'),
        ("run.keep", "1", "1", "an integer from 2 to 1000000"),
        ("run.steps", "true", "true", "an integer from 1 to 1000000000"),
        ("run.steps", "1e3", "1000.0", "an integer from 1 to 1000000000"),
        ("run.name", "'a/b'", '"a/b"', f"a string that matches {NAMES}"),
        ("data.flip", "1", "1", "true or false"),
        ("data.noise", "['odd', 2]", '["odd", 2]', NOISE),
        ("data.noise", "['pair', 1.5]", '["pair", 1.5]', NOISE),
        ("data.rand_augment", "[1]", "[1]", "[an integer from 0 to 16, an integer from 0 to 30]"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(path: Path, key: str, text: str, shown: str, expected: str) -> None:
    assert (
        refusal(path, f"{key} = {text}") == f"Config: {key} = {shown} (cfg.toml) cannot be used. Expected {expected}."
    )


def test_a_bad_override_is_not_blamed_on_the_file(path: Path) -> None:
    sentence = refusal(path, "[student]\nlr = 0.1", {"student.lr": "x"})
    assert sentence == 'Config: student.lr = "x" (command line) cannot be used. Expected a number from 0 to 1000.'


def test_several_mistakes_are_one_sentence_each(path: Path) -> None:
    assert len(refusal(path, "[student]\nlr = -1\nclip = -1\n[run]\nsteps = 0").splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[run\n", "not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 5)."),
        ("[run]\nseed = 1\nseed = 2\n", "not valid TOML: Cannot overwrite a value (at line 3, column 9)."),
        ("[run]\nseed = 1" + "0" * 5000, "a number has too many digits."),
        (b"\xff\xfe", "not a text file in UTF-8 (byte 0)."),
        ("x = " + "[" * 10**6, f"larger than {LARGEST} bytes, too large for the configuration of a run."),
        ("x = " + "[" * 60_000, "line 1: nested too deeply."),
        ("x = " + "[\n" * 30_000, "nested too deeply."),
        (".".join("a" * 30_000) + " = 1", "line 1: nested too deeply."),
        ("\n".join(f"x{i}." + ".".join("a" * 60) + " = 1" for i in range(500)), "unknown key 'x0.a'"),
    ],
    ids=["syntax", "twice", "digits", "bytes", "size", "brackets", "lines of brackets", "dots", "lines of dots"],
)
def test_a_malformed_file_is_refused_within_a_second(path: Path, text: str | bytes, reason: str) -> None:
    begin = time.process_time()
    assert reason in refusal(path, text)
    assert time.process_time() - begin < 1


def test_a_missing_file_and_a_folder_are_said_to_be_so(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Config: cfg\.toml cannot be read: No such file"):
        load(path)
    Path("my_pictures.toml").touch()
    with pytest.raises(ConfigError, match=r"No such file or directory\. Did you mean my_pictures\.toml\?$"):
        load("my pictures.toml")
    with pytest.raises(ConfigError, match="is a folder, and the configuration is a TOML file"):
        load(".")


def test_every_key_has_a_default_and_one_sentence() -> None:
    for name, field in KEYS.items():
        assert not field.is_required(), name
        assert field.description is not None, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_and_is_named_as_its_file(example: Path) -> None:
    assert load(example).run.name == example.stem


def test_examples_that_nobody_has_run_say_so_in_their_first_line() -> None:
    assert {path.stem for path in EXAMPLES if path.read_text().startswith("# NOT RUN. ")} == NOT_RUN


def test_the_teacher_of_the_distillation_example_is_another_example() -> None:
    teacher = load(ROOT / "launch/configs/digits_distillation.toml").teacher.model
    assert load(ROOT / "launch/configs" / f"{Path(teacher).name}.toml").run.name == Path(teacher).name


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_key_is_dropped_at_its_last_default_and_refused_at_another_value(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delitem(KEYS, name, raising=False)
    section, key = name.split(".")
    path.write_text(tomli_w.dumps({section: {key: REMOVED[name]}}))
    assert load(path) == Config()
    sentence = f'{name} = "another" (command line): this key was removed'
    assert sentence in refusal(path, "", {name: "another"})


# -- paths


def test_home_and_variables_are_expanded_in_every_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DATA", "/data")
    path.write_text('[run]\noutput = "~/runs"\n[data]\nsource = "folder"\nroot = "${DATA}/x"\n')
    config = load(path, {"data.filter_store": "$DATA/y", "data.per_class": 3})
    assert (config.run.output, config.data.root, config.data.filter_store) == (
        "/home/someone/runs",
        "/data/x",
        "/data/y",
    )
    for key in ("run.output", "data.root"):
        assert f"{key} = '$NOT_SET/x' names the variable NOT_SET" in refusal(path, "", {key: "$NOT_SET/x"})
        assert "holds a control character" in refusal(path, "", {key: "a\0b"})
    Path("$NOT_SET").mkdir()
    assert load(path, {"data.root": "$NOT_SET"}).data.root == "$NOT_SET"  # there is a folder of that name


def test_a_relative_path_is_looked_for_here_and_then_beside_the_file(path: Path) -> None:
    beside = Path("configs/mine.toml")
    (beside.parent / "pictures").mkdir(parents=True)
    (beside.parent / "conv").mkdir()
    beside.write_text(
        '[data]\nsource = "folder"\nroot = "pictures"\n[run]\noutput = "pictures"\n[teacher]\nmodel = "conv"\n'
    )
    config = load(beside, {"teacher.model": "conv"})
    assert (config.data.root, config.run.output, config.teacher.model) == ("configs/pictures", "pictures", "conv")
    Path("pictures").mkdir()
    assert load(beside).data.root == "pictures"


def test_the_name_of_a_run_leads_to_its_folder(path: Path) -> None:
    Path("runs/a").mkdir(parents=True)
    assert suggest_run(Path("a")) == ""
    Path("runs/a/config.toml").touch()
    assert suggest_run(Path("a")) == suggest_run(Path("a.toml")) == " Did you mean runs/a?"
    assert suggest_run(Path("runs/a")) == suggest_run(Path("b")) == ""
    with pytest.raises(ConfigError, match=r"no readable STATUS\.json\. Did you mean runs/a\?$"):
        list(status(Path("a")))


def test_a_run_finds_its_pictures_from_another_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fastmpl evaluate /there/runs/a`: data.root = "pictures" was relative to where `fastmpl train` was called."""
    run, here = Path("all/runs/a").absolute(), Path.cwd()
    run.mkdir(parents=True)
    Path("pictures").mkdir()
    text = '[data]\nsource = "folder"\nroot = "pictures"\n[run]\nname = "a"\noutput = "all/runs"\n'
    (run / "config.toml").write_text(text)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert load(run / "config.toml").data.root == str(here / "pictures")
    assert load("../all/runs/a/config.toml").data.root == str(here / "pictures")
    for other in (
        text.replace('"a"', '"b"'),
        text.replace("all/runs", "../runs"),
        text.replace("all/runs", "/all/runs"),
    ):
        (run / "config.toml").write_text(other)  # moved or renamed since, or no folder can be known
        assert load(run / "config.toml").data.root == "pictures"
    Path("pictures").mkdir()
    (run / "config.toml").write_text(text)
    assert load(run / "config.toml").data.root == "pictures"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("student.learning_rate", "'student.lr'"),
        ("learning_rate", "'teacher.lr' or 'student.lr' or 'finetune.lr'"),
        ("run.epochs", "'run.steps'"),
        ("student.optimizer", "'student.optimiser'"),
        ("data.img_size", "'data.image_size'"),
        ("sede", "'run.seed'"),
    ],
)
def test_an_unknown_key_suggests_what_was_likely_meant(path: Path, name: str, nearest: str) -> None:
    assert refusal(path, "", {name: 1}).endswith(f"Did you mean {nearest}?")


def test_a_folder_in_place_of_a_file_names_what_to_do(path: Path) -> None:
    Path("my pictures").mkdir()
    with pytest.raises(ConfigError, match="`fastmpl init 'my pictures'` writes one"):
        load("my pictures")
    Path("my pictures/config.toml").touch()
    with pytest.raises(ConfigError, match=r"Did you mean my pictures/config\.toml\?"):
        load("my pictures")
