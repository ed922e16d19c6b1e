"""Lists and counts in messages."""

import pytest

from schemas.text import counted, listed


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs"), (12_000, "12,000 jobs")],
)
def test_a_count_has_the_noun_in_its_number(count: int, text: str) -> None:
    assert counted(count, "job") == text


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["b", "a"], "b, a"),
        (["c", "b", "a"], "c, b and 1 more"),
        ([f"ws-{number}" for number in range(2_000)], "ws-0, ws-1 and 1,998 more"),
    ],
)
def test_a_long_list_says_how_many_it_leaves_out(names: list[str], text: str) -> None:
    assert listed(names, 2) == text
