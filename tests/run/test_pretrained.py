"""`pretrained`: which tensors a network starts from, what becomes of its classifier, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from fastmpl.cli import main
from fastmpl.config import load
from fastmpl.errors import ConfigError, FastMPLError
from fastmpl.models import ModelError, build
from fastmpl.models.pretrained import Weights
from fastmpl.run.pretrained import read_start
from fastmpl.run.trainer import train

DIGITS = Path(__file__).parents[2] / "launch" / "configs" / "digits_supervised.toml"
CLASSES = tuple("0123456789")


def vit_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in timm.create_model("test_vit", img_size=32).state_dict().items()}


def train_from(pretrained: Path, folder: Path, **changes: Any) -> dict[str, Tensor]:
    """The student after steps at a learning rate of 0."""
    settings: dict[str, Any] = {
        "run.output": str(folder),
        "run.steps": 1,
        "student.model": "timm:test_vit",
        "student.pretrained": str(pretrained),
        "student.lr": 0.0,
        "student.norm": "batch",
        "data.image_size": 32,
    }
    train(load(DIGITS, settings | changes), quiet=True, report=False)
    return safetensors.torch.load_file(folder / "digits_supervised" / "student.safetensors")


def test_every_tensor_but_the_classifiers_is_the_files(tmp_path: Path) -> None:
    state = vit_state()
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    student = train_from(tmp_path / "vit.safetensors", tmp_path / "runs")
    differing = {name for name, value in student.items() if not torch.equal(value, state[name])}
    assert differing == {"head.weight", "head.bias"}


def test_a_run_that_continues_does_not_read_the_weights_again(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(vit_state(), file)
    train_from(file, tmp_path / "runs")
    file.unlink()
    student = train_from(file, tmp_path / "runs", **{"run.steps": 2})
    assert torch.equal(student["patch_embed.proj.weight"], vit_state()["patch_embed.proj.weight"])


def write_truncated(path: Path) -> Path:
    path = path / "cut.safetensors"
    path.write_bytes(safetensors.torch.save(vit_state())[:-100])
    return path


def write_other_network(path: Path) -> Path:
    path = path / "other.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


class Payload:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("the payload of a pickle ran",))


def write_pickle(path: Path) -> Path:
    path = path / "weights.pth"
    path.write_bytes(pickle.dumps({"weight": Payload()}))
    return path


def write_nan(path: Path) -> Path:
    state = vit_state()
    state["norm.weight"][0] = torch.nan
    safetensors.torch.save_file(state, path / "nan.safetensors")
    return path / "nan.safetensors"


def write_nothing(path: Path) -> Path:
    return path / "nowhere.safetensors"


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (write_truncated, "is no readable file of weights"),
        (write_other_network, "it is of another network"),
        (write_pickle, "no readable file of weights|more than tensors"),
        (write_nan, "norm.weight that are not finite"),
        (write_nothing, "does not exist"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_in_a_sentence(
    write: Callable[[Path], Path], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(FastMPLError, match=sentence) as raised:
        train_from(write(tmp_path), tmp_path / "runs")
    assert raised.value.exit_code in (2, 3)
    assert not (tmp_path / "runs" / "digits_supervised").exists()


WRITERS = [write_truncated, write_other_network, write_pickle, write_nan]


@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize("write", WRITERS)
def test_the_command_refuses_such_weights_in_one_line(
    verb: str,
    write: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    assert main(command(verb, write(tmp_path), tmp_path)) in (2, 3)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Config: student.pretrained = ")
    assert caplog.text == "" and len(recwarn) == 0  # which a terminal shows too


@pytest.mark.parametrize("verb", ["train", "check"])
def test_the_command_counts_the_tensors_that_it_loads(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = vit_state()
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    assert main(command(verb, tmp_path / "vit.safetensors", tmp_path)) == 0
    shown = " ".join("".join(capsys.readouterr()).split())
    assert f"loaded {len(state) - 2} of {len(state)} tensors" in shown
    assert "new: head.weight, head.bias" in shown


def command(verb: str, weights: Path, folder: Path) -> list[str]:
    options = {"student.model": "timm:test_vit", "student.pretrained": weights, "student.lr": 0, "run.steps": 1}
    options |= {"data.image_size": 32, "run.output": folder / "runs"}
    return [verb, str(DIGITS), *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def own_network(seed: int, classes: int = 10) -> torch.nn.Module:
    return build("conv", classes=classes, image_shape=(3, 8, 8), dropout=0.0, norm="batch", width=8, depth=1, seed=seed)


def test_the_classifier_of_a_run_is_kept_in_the_datas_order_of_classes(tmp_path: Path) -> None:
    settings = {"run.output": str(tmp_path), "run.steps": 1, "student.width": 8}
    train(load(DIGITS, settings), quiet=True, report=False)
    run = tmp_path / "digits_supervised"
    state = safetensors.torch.load_file(run / "student.safetensors")
    turned = tuple(reversed(CLASSES))
    network = own_network(1)
    start = read_start(str(run), "student", turned)
    assert start.weights.head_order is not None and any("order of classes" in remark for remark in start.remarks)
    loaded = build(
        "conv",
        classes=10,
        image_shape=(3, 8, 8),
        dropout=0.0,
        norm="batch",
        width=8,
        depth=1,
        seed=1,
        weights=start.weights,
    ).state_dict()
    heads = [name for name, value in state.items() if name.endswith("weight") and value.shape[0] == 10]
    assert len(heads) == 1
    assert torch.equal(loaded[heads[0]], state[heads[0]].flip(0))
    assert not torch.equal(network.state_dict()[heads[0]], loaded[heads[0]])
    others = read_start(str(run), "student", (*CLASSES[:-1], "ten"))
    assert others.weights.head_order is None and "starts new" in others.remarks[0]


def test_the_hub_without_a_network_names_the_file_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"fetch model\.safetensors of timm/test_vit"):
        build(
            "timm:test_vit",
            classes=10,
            image_shape=(3, 32, 32),
            dropout=0.0,
            norm="batch",
            width=8,
            depth=1,
            seed=0,
            weights=Weights("hub", None),
        )


def test_a_name_with_a_tag_needs_pretrained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'Set student.pretrained = "hub" or a file of weights'):
        load(DIGITS, {"student.model": "timm:test_vit.r160_in1k"})
    settings = {"student.model": "timm:test_vit.r160_in1k", "student.pretrained": "hub"}
    assert load(DIGITS, settings).student.pretrained == "hub"
