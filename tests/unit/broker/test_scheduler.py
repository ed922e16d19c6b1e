"""Occurrences are sent when they are due, each as one job, also if senders are killed."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.schedules.scheduler import OLDEST, TOLERANCE, due_occurrences
from schemas import Schedule, group
from schemas.orders.schedule import Occurrence
from tests.support.schedules import HOUR, MINUTE, NOON, make

# What should have been sent by a certain time


def times(schedule: Schedule, now: datetime) -> list[str]:
    return [f"{found.local:%d %H:%M}" for found in due_occurrences(schedule, now)]


@pytest.mark.parametrize("missed", ["once", "skip"])
def test_what_is_due_is_wanted_also_a_little_late(missed: str) -> None:
    of = make(group("x"), missed=missed)
    for late in (timedelta(0), TOLERANCE - timedelta(seconds=1)):
        assert times(of, NOON + late) == [f"{NOON:%d} 12:00"]


def test_of_those_missed_the_last_is_wanted_or_none() -> None:
    late = NOON + timedelta(minutes=40)
    assert times(make(group("x")), late) == [f"{NOON:%d} 12:00"]
    assert times(make(group("x"), missed="skip"), late) == []


def test_one_that_is_missed_is_not_made_up_for_once_a_later_one_is_due() -> None:
    of = make(group("x"), repeat="* * * * *", overlap="allow")
    five = [f"{NOON - MINUTE * back:%d %H:%M}" for back in (4, 3, 2, 1, 0)]
    assert times(of, NOON) == five
    assert times(make(group("x")), NOON) == [f"{NOON:%d} 12:00"]


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_where_occurrences_must_not_overlap_only_the_last_is_wanted(overlap: str) -> None:
    """Several would run at the same time."""
    of = make(group("x"), repeat="* * * * *", overlap=overlap)
    assert times(of, NOON) == [f"{NOON:%d} 12:00"]


def test_one_that_waits_for_an_earlier_one_is_wanted_for_longer_than_one_that_was_missed() -> None:
    hourly = make(group("x"), overlap="queue", missed="skip")
    assert times(hourly, NOON + MINUTE * 40) == [f"{NOON:%d} 12:00"]


def test_the_agents_decide_where_the_time_is_that_of_their_clock() -> None:
    """The occurrences are sent hours before they are due."""
    for overlap, expected in (("skip", "skip"), ("queue", "queue"), ("allow", None)):
        of = make(group("x"), overlap=overlap, zone=None)
        assert Occurrence(of, NOON.replace(tzinfo=None)).job().overlap == expected


def test_the_first_is_the_first_after_the_schedule_was_added() -> None:
    of = make(group("x"), created_at=NOON + timedelta(seconds=1))
    assert times(of, NOON + HOUR - MINUTE) == []
    assert times(of, NOON + HOUR) == [f"{NOON:%d} 13:00"]
    assert times(make(group("x"), created_at=NOON + HOUR), NOON) == []


def test_what_was_missed_long_ago_is_wanted_no_more() -> None:
    yearly = f"0 12 {NOON.day} {NOON.month} *"
    of = make(group("x"), repeat=yearly, created_at=NOON - timedelta(days=1))
    assert times(of, NOON + OLDEST - HOUR) == [f"{NOON:%d} 12:00"]
    assert times(of, NOON + OLDEST) == []
    assert due_occurrences(of, NOON + HOUR, oldest=HOUR) == []


def test_by_each_workstations_clock_those_still_ahead_are_all_wanted() -> None:
    """They are sent an hour before the first clock shows them: no workstation has missed them."""
    of = make(group("x"), repeat="*/15 * * * *", zone=None, missed="skip")
    first = (NOON + timedelta(hours=14)).replace(tzinfo=None)
    ahead = [found.local - first for found in due_occurrences(of, NOON)]
    assert ahead == [MINUTE * minutes for minutes in (0, 15, 30, 45, 60)]
    once = make(group("x"), repeat="0 2 * * *", zone=None)
    assert [found.send_at.hour for found in due_occurrences(once, NOON + timedelta(hours=9))] == [
        11
    ]


@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *"]),
    st.sampled_from([None, "Europe/Berlin", "Australia/Lord_Howe"]),
    st.sampled_from(["once", "skip"]),
    st.integers(0, 86400),
)
def test_who_looks_every_minute_misses_none(
    repeat: str, zone: str | None, missed: str, start: int
) -> None:
    begin = datetime(2026, 3, 28, 12, tzinfo=UTC) + timedelta(seconds=start)
    of = make(group("x"), repeat=repeat, zone=zone, missed=missed, created_at=begin)
    end = begin + timedelta(hours=1)
    seen = {found.id for step in range(61) for found in due_occurrences(of, begin + MINUTE * step)}
    assert seen == {found.id for found in of.times(begin, end)}
