"""The optimiser's tables of addresses: kept while they are needed, and made without the host inside a capture."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmpl_kernels.sgd_ema import hold_tables, tables

SHAPES = [(3,), (2500,), (0,), (16, 4, 3, 3), (1024,), ()]


def make_lists(count: int = 2) -> list[list[Tensor]]:
    return [[torch.randn(shape) for shape in SHAPES] for _ in range(count)]


@pytest.fixture(autouse=True)
def start_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_tables", type(tables._tables)())
    monkeypatch.setattr(tables, "_captured", [])


@contextmanager
def capture() -> Iterator[None]:
    """Pretends that a capture is under way, in which nothing may come from the host's memory."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a capture copied from the host")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "is_capturing", lambda _: True)
        patch.setattr(torch, "tensor", refuse)
        patch.setattr(Tensor, "pin_memory", refuse)
        yield


def assert_equal_tables(found: tables.Table, expected: tables.Table) -> None:
    for name, a, b in zip(found._fields, found, expected, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name
        assert not isinstance(a, Tensor) or a.dtype == b.dtype, name


def test_a_capture_makes_the_table_of_new_addresses_on_the_device_and_keeps_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lists = make_lists(4)
    with capture():
        within = tables.table_of(lists)
    assert not tables._tables and not tables._captured  # its memory is written by replays alone
    assert "keep the gradients' memory" in caplog.text
    assert_equal_tables(within, tables._make_on_host(lists))


def test_a_capture_takes_the_table_that_a_step_before_has_made() -> None:
    lists = make_lists()
    before = tables.table_of(lists)
    with capture():
        assert tables.table_of(lists) is before


@pytest.mark.parametrize("held", [True, False])
def test_the_cache_never_drops_a_table_of_a_live_graph(held: bool) -> None:
    lists = make_lists()
    used = tables.table_of(lists)
    with capture(), hold_tables() if held else nullcontext([]) as owner:
        tables.table_of(lists)
    others = [make_lists(1) for _ in range(tables.TABLES_KEPT)]
    for other in others:
        tables.table_of(other)
    assert all(kept is not used for kept in tables._tables.values())
    assert [kept is used for kept in (owner if held else tables._captured)] == [True]
    assert not (tables._captured if held else owner)


def test_tensors_at_the_same_addresses_share_a_table_and_others_do_not() -> None:
    lists = make_lists()
    assert tables.table_of(lists) is tables.table_of([list(tensors) for tensors in lists])
    assert tables.table_of(make_lists()) is not tables.table_of(lists)
