"""The place of a process among the ranks is read from the environment; a wrong one is one sentence."""

import pytest

from fastmpl.distributed.process_group import Place, read_place
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
