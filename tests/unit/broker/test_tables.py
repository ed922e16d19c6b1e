"""Tables on a terminal have one line per row, at any width; elsewhere nothing is cut."""

from collections.abc import Sequence

import pytest

from broker.cli.table import Cell, Column, lines
from broker.cli.time_formats import age, local
from tests.support.simulated_fleet import NOW

COLUMNS = (
    Column("id"),
    Column("name", least=6),
    Column("age", rank=1),
    Column("count", rank=2, right=True),
)
ROW = ("job-1", "a long name of it", Cell("2026-11-23 10:00 UTC", "7 min"), 12)


def table(room: int | None, *rows: Sequence[object]) -> list[str]:
    return list(lines(COLUMNS, rows or [ROW], room))


def test_elsewhere_a_row_has_all() -> None:
    assert table(None) == [
        "ID     NAME               AGE                   COUNT",
        "job-1  a long name of it  2026-11-23 10:00 UTC     12",
    ]


def test_on_a_terminal_ages_are_short() -> None:
    assert table(80)[1] == "job-1  a long name of it  7 min     12"


def test_long_texts_are_cut_before_a_column_is_left_out() -> None:
    assert table(30) == ["ID     NAME       AGE    COUNT", "job-1  a long n…  7 min     12"]


def test_the_least_important_columns_are_left_out_first() -> None:
    assert table(24) == ["ID     NAME        AGE", "job-1  a long na…  7 min"]
    assert table(14) == ["ID     NAME", "job-1  a long…"]


def test_a_column_that_says_nothing_is_left_out_before_those_that_do() -> None:
    assert table(24, ("job-1", "a name", None, 12))[0].split() == ["ID", "NAME", "COUNT"]


@pytest.mark.parametrize("room", range(1, 60))
def test_no_line_is_wider_than_the_terminal(room: int) -> None:
    rows = [ROW, ("工作站-" * 3, "名字很长的工作", None, 3), ("e\u0301" * 30, "\x1b[2J", "", 10**9)]
    assert all(width(line) <= room for line in table(room, *rows))


def width(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)


def test_a_very_long_text_is_cut_at_once() -> None:
    assert len(table(80, ("x", "é" * 1_000_000, None, 1))[1]) <= 80


@pytest.mark.parametrize(
    ("past", "text"),
    [
        (0, "now"),
        (0.4, "now"),
        (59, "59 s"),
        (7 * 60 + 30, "7 min"),
        (5 * 3600, "5 h"),
        (86400, "1 day"),
        (9 * 86400, "9 days"),
        (-120, "in 2 min"),
    ],
)
def test_an_age_is_its_largest_unit(past: float, text: str) -> None:
    assert age(1000, 1000 + past) == text


def test_a_time_bears_its_zone() -> None:
    assert local(0).endswith(f" {NOW.astimezone():%Z}")
