"""Which report of several gives a job's state on a workstation."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Report, Result, State
from schemas.reports.report import furthest, report_order

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SERVICE, ADA, BOB = "service", "interactive-ada", "interactive-bob"

# What agents report, in the order in which they do, and the place of the report that counts.
STORIES: dict[str, tuple[list[tuple[str, State]], int]] = {
    "both agents receive it": ([(SERVICE, State.RECEIVED), (ADA, State.RECEIVED)], 1),
    "an offer": ([(SERVICE, State.RECEIVED), (ADA, State.RECEIVED), (ADA, State.OFFERED)], 2),
    "an offer, and a late receipt": ([(ADA, State.OFFERED), (SERVICE, State.RECEIVED)], 0),
    "postponed": ([(ADA, State.OFFERED), (ADA, State.POSTPONED)], 1),
    "postponed, and offered again": (
        [(ADA, State.OFFERED), (ADA, State.POSTPONED), (ADA, State.OFFERED)],
        2,
    ),
    "declined": ([(ADA, State.OFFERED), (ADA, State.DECLINED)], 1),
    "declined, and postponed after all": (
        [(ADA, State.OFFERED), (ADA, State.DECLINED), (ADA, State.POSTPONED)],
        2,
    ),
    "declined, and accepted after all": (
        [(ADA, State.OFFERED), (ADA, State.DECLINED), (ADA, State.ACCEPTED)],
        2,
    ),
    "one declines, another is asked": (
        [(ADA, State.OFFERED), (BOB, State.OFFERED), (ADA, State.DECLINED)],
        1,
    ),
    "all decline": (
        [
            *((ADA, State.OFFERED), (BOB, State.OFFERED)),
            *((ADA, State.DECLINED), (BOB, State.DECLINED)),
        ],
        3,
    ),
    "one accepts, another declines": ([(ADA, State.ACCEPTED), (BOB, State.DECLINED)], 0),
    "one starts it, another still has the offer": (
        [(ADA, State.STARTED), (BOB, State.OFFERED)],
        0,
    ),
    "interrupted and started again": (
        [(SERVICE, State.RECEIVED), (SERVICE, State.STARTED), (SERVICE, State.STARTED)],
        2,
    ),
    "other content under its id": ([(SERVICE, State.STARTED), (SERVICE, State.CONFLICT)], 0),
    "ended, and started as it seems": ([(SERVICE, State.FAILED), (SERVICE, State.STARTED)], 0),
    "Q152229: expired after it ended": ([(ADA, State.FAILED), (SERVICE, State.EXPIRED)], 0),
    "two ends without a run": ([(SERVICE, State.EXPIRED), (SERVICE, State.CANCELLED)], 0),
    "two ends of a run": ([(SERVICE, State.INTERRUPTED), (SERVICE, State.SUCCEEDED)], 0),
}


def reports(story: Sequence[tuple[str, State]]) -> list[Report]:
    """Return the reports of a story, a second apart."""
    return [
        report(state, agent, NOW + timedelta(seconds=place))
        for place, (agent, state) in enumerate(story)
    ]


def report(state: State, agent: str, at: datetime) -> Report:
    ran = Result(exit_code=0, duration=timedelta(seconds=1), max_memory=1)
    result = ran if state is State.SUCCEEDED else None
    return Report(job_id="job", workstation="ws-1", agent=agent, state=state, at=at, result=result)


@pytest.mark.parametrize("name", STORIES)
def test_the_report_that_counts_is_the_same_in_any_order(name: str) -> None:
    story, counts = STORIES[name]
    in_order = reports(story)
    for one in permutations(in_order):
        assert furthest(one) is in_order[counts]


def test_without_a_report_there_is_no_state() -> None:
    assert furthest([]) is None
    assert furthest([report(State.CONFLICT, SERVICE, NOW)]) is None


@pytest.mark.parametrize(
    "story",
    [
        [State.RECEIVED, State.OFFERED, State.ACCEPTED, State.STARTED, State.SUCCEEDED],
        [State.RECEIVED, State.DECLINED, State.ACCEPTED],
        [State.STARTED, State.EXPIRED, State.FAILED],
    ],
)
@given(data=st.data())
def test_clocks_do_not_decide_between_steps(story: list[State], data: st.DataObject) -> None:
    """The last state of each story counts, with any clock at each report."""
    clock = st.datetimes(datetime(1970, 1, 1), datetime(8999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - the zone is drawn
    in_order = [report(state, SERVICE, data.draw(clock)) for state in story]
    assert furthest(data.draw(st.permutations(in_order))) is in_order[-1]


def test_equal_times_leave_nothing_to_the_order_of_reading() -> None:
    in_order = [report(State.OFFERED, ADA, NOW) for _ in range(3)]
    in_order.append(report(State.DECLINED, ADA, NOW))
    assert {id(furthest(one)) for one in permutations(in_order)} == {id(in_order[-1])}
    assert len({report_order(one) for one in in_order}) == len(in_order)
