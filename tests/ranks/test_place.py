"""The place of a process among the ranks is read from the environment; a wrong one is one sentence."""

import pytest
import torch

from fastmpl.distributed.process_group import Place, choose_backend, read_place
from fastmpl.errors import ConfigError


def test_a_process_without_a_launcher_is_alone() -> None:
    assert read_place({}) == Place()
    assert read_place({"RANK": "x"}) == Place()  # without WORLD_SIZE no launcher wrote it


def test_the_place_is_what_the_launcher_wrote() -> None:
    written = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert read_place(written) == Place(5, 8, 1, 4, True)
    assert read_place({"RANK": "1", "WORLD_SIZE": "2"}) == Place(1, 2, 0, 2, True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"RANK": "x"}, "RANK = 'x'"),
        ({"RANK": "-1"}, "RANK = '-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0'"),
        ({"LOCAL_RANK": "y"}, "LOCAL_RANK = 'y'"),
        ({"LOCAL_WORLD_SIZE": "1.5"}, "LOCAL_WORLD_SIZE = '1.5'"),
        ({"RANK": "2"}, "RANK = 2 and WORLD_SIZE = 2"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK = 2 and LOCAL_WORLD_SIZE = 2"),
    ],
)
def test_a_wrong_place_is_refused_by_the_name_of_its_variable(changes: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_place({"RANK": "0", "WORLD_SIZE": "2"} | changes)


def test_more_ranks_than_gpus_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_backend(Place(5, 8, 1, 4, True)) == "nccl"
    assert current == [1]
    with pytest.raises(ConfigError, match="4 ranks were started on this machine, and rank 6 sees 2 GPUs"):
        choose_backend(Place(6, 8, 2, 4, True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_backend(Place(6, 8, 2, 4, True)) == "gloo"
