"""The policy of both agents: each row of the domain's table."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.store.transaction import JobRecord
from schemas import Command, Job, State, everyone, group
from schemas.orders.job import DEFAULT_LIFETIME
from schemas.policy import (
    Host,
    InteractiveRules,
    Next,
    ServiceRules,
    Step,
    due_order,
    held_back_since,
)
from schemas.times import NEVER

START = datetime(2026, 11, 30, 12, tzinfo=UTC)
T0 = START.timestamp()
LINUX = Host(frozenset({"linux", "linux/x86_64"}))
SERVICE = ServiceRules(LINUX, takeover_grace=60)
INTERACTIVE = InteractiveRules(LINUX, countdown=300)


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else START + timedelta(seconds=seconds)


def entry(
    *,
    background: bool = False,
    received: float = 0,
    state: State = State.RECEIVED,
    shown: float | None = None,
    until: float | None = None,
    cancelled: str | None = None,
    user_input_required: bool = False,
    platforms: frozenset[str] = frozenset(),
    offer_at: float | None = None,
    mandatory_at: float | None = None,
    expires_at: float | None = None,
) -> JobRecord:
    job = Job(
        command=Command(
            argv=("true",),
            background=background,
            user_input_required=user_input_required,
            platforms=platforms,
        ),
        targets=(everyone,),
        created_at=START,
        offer_at=at(offer_at),
        mandatory_at=at(mandatory_at),
        expires_at=at(expires_at),
    )
    return JobRecord(
        job,
        T0 + received,
        state=state,
        shown_at=None if shown is None else T0 + shown,
        until=None if until is None else T0 + until,
        cancelled=cancelled,
    )


def step(following: Next) -> tuple[Step, float]:
    return following.step, following.at - T0 if 0 < following.at < NEVER else following.at


def test_service_runs_background_mandatory_at_its_mandatory_time() -> None:
    """Q165147, Q166765, Q163488."""
    assert step(SERVICE.next(entry(background=True, mandatory_at=100), T0, claimed=False)) == (
        Step.RUN,
        100,
    )


def test_service_runs_background_optional_at_its_offer_time() -> None:
    """Q174933: no mandatory time does not mean never."""
    assert step(SERVICE.next(entry(background=True, offer_at=50), T0, claimed=False)) == (
        Step.RUN,
        50,
    )
    now = SERVICE.next(entry(background=True, received=7), T0 + 7, claimed=False)
    assert step(now) == (Step.RUN, 7)


def test_service_takes_over_foreground_mandatory_after_a_grace_period() -> None:
    assert step(SERVICE.next(entry(mandatory_at=100), T0, claimed=False)) == (Step.RUN, 160)
    overdue = SERVICE.next(entry(mandatory_at=100, received=500), T0 + 500, claimed=False)
    assert step(overdue) == (Step.RUN, 560)


def test_service_never_runs_what_needs_the_user() -> None:
    waits = SERVICE.next(entry(mandatory_at=100, user_input_required=True), T0, claimed=False)
    assert (waits.step, waits.state) == (Step.CLOSE, State.EXPIRED)
    assert waits.at == T0 + 100 + DEFAULT_LIFETIME.total_seconds()
    ends = entry(mandatory_at=100, user_input_required=True, expires_at=900)
    assert step(SERVICE.next(ends, T0, claimed=False)) == (Step.CLOSE, 900)


def test_service_reports_the_expiry_of_an_optional_offer() -> None:
    waits = SERVICE.next(entry(), T0, claimed=False)
    assert (waits.step, waits.at) == (Step.CLOSE, T0 + DEFAULT_LIFETIME.total_seconds())
    following = SERVICE.next(entry(expires_at=900), T0, claimed=False)
    assert step(following) == (Step.CLOSE, 900)
    assert following.state is State.EXPIRED


def test_nothing_is_seen_before_its_offer_time() -> None:
    """Q149683."""
    for early in (entry(offer_at=50), entry(offer_at=50, mandatory_at=1000)):
        assert step(INTERACTIVE.next(early, T0, claimed=False)) == (Step.OFFER, 50)


def test_optional_runs_only_if_the_user_says_so() -> None:
    """Q149683, Q166725."""
    waits = INTERACTIVE.next(entry(shown=0, state=State.OFFERED), T0, claimed=False)
    assert (waits.step, waits.at) == (Step.CLOSE, T0 + DEFAULT_LIFETIME.total_seconds())
    accepted = INTERACTIVE.next(entry(shown=0, state=State.ACCEPTED), T0, claimed=False)
    assert accepted.step is Step.RUN
    standing = replace(INTERACTIVE, accept_offers=True)
    welcome = standing.next(entry(shown=0, state=State.OFFERED), T0, claimed=False)
    assert welcome.step is Step.ACCEPT


def test_the_countdown_ends_at_the_mandatory_time() -> None:
    """Q185805, Q122202: the claim is taken when it begins."""
    offered = entry(shown=0, state=State.OFFERED, mandatory_at=1000)
    assert step(INTERACTIVE.next(offered, T0, claimed=False)) == (Step.COUNT_DOWN, 700)
    assert step(INTERACTIVE.next(offered, T0, claimed=True)) == (Step.RUN, 1000)


@pytest.mark.parametrize("shown", [900, 1000, 5000])
def test_who_sees_it_late_gets_a_whole_countdown(shown: float) -> None:
    offered = entry(shown=shown, state=State.OFFERED, mandatory_at=1000)
    now = T0 + shown
    assert step(INTERACTIVE.next(offered, now, claimed=False)) == (Step.COUNT_DOWN, shown)
    assert step(INTERACTIVE.next(offered, now, claimed=True)) == (Step.RUN, shown + 300)


def test_postponing_hides_an_offer_until_then() -> None:
    postponed = entry(shown=0, state=State.POSTPONED, until=50)
    assert step(INTERACTIVE.next(postponed, T0, claimed=False)) == (Step.OFFER, 50)


def test_a_declined_offer_comes_back_only_by_the_users_word() -> None:
    declined = entry(shown=0, state=State.DECLINED, expires_at=900)
    assert step(INTERACTIVE.next(declined, T0, claimed=False)) == (Step.CLOSE, 900)


@pytest.mark.full
@given(
    st.floats(0, 10_000),
    st.floats(0, 10_000),
    st.one_of(st.none(), st.floats(0, 20_000)),
    st.sampled_from([State.OFFERED, State.POSTPONED]),
)
def test_nothing_that_the_user_does_escapes_a_mandatory_job(
    mandatory: float, shown: float, until: float | None, state: State
) -> None:
    """Q122202: the deadline depends on the mandatory time and the first showing alone."""
    held = entry(shown=shown, state=state, until=until, mandatory_at=mandatory)
    deadline = INTERACTIVE.deadline(held, T0 + shown)
    assert deadline == pytest.approx(T0 + max(mandatory, shown + 300))
    following = INTERACTIVE.next(held, T0 + shown, claimed=True)
    assert following.at <= deadline
    assert following.step is Step.RUN or (until is not None and following.at < deadline)


def test_a_clock_that_was_set_back_delays_nothing() -> None:
    """Times recorded by a clock that was ahead are in the future, and are not waited for."""
    day = 86_400
    ahead = entry(mandatory_at=100, received=day)
    assert step(SERVICE.next(ahead, T0 + 200, claimed=False)) == (Step.RUN, 160)
    ahead = entry(background=True, received=day)
    assert step(SERVICE.next(ahead, T0, claimed=False)) == (Step.RUN, 0)
    assert step(INTERACTIVE.next(entry(received=day), T0, claimed=False)) == (Step.OFFER, 0)
    shown = entry(shown=day, state=State.OFFERED, mandatory_at=100)
    assert INTERACTIVE.next(shown, T0 + 200, claimed=False).step is Step.OFFER


@pytest.mark.parametrize("rules", [SERVICE, INTERACTIVE])
def test_what_was_interrupted_is_started_again_unless_it_is_too_late(
    rules: ServiceRules | InteractiveRules,
) -> None:
    held = entry(state=State.STARTED, shown=0, mandatory_at=500, expires_at=900)
    assert rules.next(held, T0, claimed=False).step is Step.RUN
    assert rules.next(held, T0 + 900, claimed=False).step is Step.CLOSE


@given(
    st.sampled_from([SERVICE, INTERACTIVE]),
    st.sampled_from([State.RECEIVED, State.OFFERED, State.ACCEPTED, State.POSTPONED]),
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 800)),
    st.integers(801, 1000),
    st.integers(-500, 2000),
)
def test_expired_jobs_never_start(
    rules: ServiceRules | InteractiveRules,
    state: State,
    claimed: bool,  # noqa: FBT001
    background: bool,  # noqa: FBT001
    mandatory: int | None,
    expires: int,
    late: int,
) -> None:
    """Q225056, Q255284: after the expiry the job is closed, also if it was due before."""
    held = entry(
        background=background,
        state=state,
        shown=None if state is State.RECEIVED else 0,
        mandatory_at=mandatory,
        expires_at=expires,
    )
    following = rules.next(held, T0 + expires + late, claimed=claimed)
    if late >= 0:
        assert (following.step, following.state) == (Step.CLOSE, State.EXPIRED)
    elif following.step is not Step.CLOSE:
        assert following.at < T0 + expires


@pytest.mark.parametrize("rules", [SERVICE, INTERACTIVE])
def test_cancelled_and_wrong_platform_come_first(
    rules: ServiceRules | InteractiveRules,
) -> None:
    """Q140928, Q156250."""
    cancelled = rules.next(entry(mandatory_at=0, cancelled="no"), T0, claimed=True)
    assert (cancelled.step, cancelled.state, cancelled.reason) == (
        Step.CLOSE,
        State.CANCELLED,
        "no",
    )
    elsewhere = rules.next(entry(platforms=frozenset({"windows"})), T0, claimed=False)
    assert (elsewhere.step, elsewhere.state) == (Step.CLOSE, State.NOT_APPLICABLE)
    assert elsewhere.reason == "runs on windows; this is linux/x86_64"
    here = rules.next(entry(platforms=frozenset({"windows", "linux"})), T0, claimed=False)
    assert here.state in {None, State.EXPIRED}


def test_overdue_jobs_are_run_in_order_of_mandatory_time() -> None:
    """Q173388."""
    jobs = [entry(mandatory_at=seconds, received=-seconds) for seconds in (300, 100, 200)]
    assert [found.mandatory_at for found in sorted(jobs, key=due_order)] == [
        T0 + 100,
        T0 + 200,
        T0 + 300,
    ]


def held_back(rules: ServiceRules | InteractiveRules, came: list[JobRecord]) -> list[JobRecord]:
    """Return entries that came one after the other, held back as an agent does it."""
    waiting: list[JobRecord] = []
    for one in came:
        since = {rules.waits_since: getattr(one, rules.waits_since)}
        overtaking = rules.overtaking(one, waiting)
        waiting = [replace(other, **since) if other in overtaking else other for other in waiting]
        waiting.append(one)
    return waiting


OVERDUE = st.lists(
    st.tuples(st.integers(-1000, -1), st.integers(0, 59)),
    min_size=2,
    max_size=8,
    unique_by=lambda times: times[0],
)
"""When jobs were due, and when each came: before the first of them runs."""


@given(OVERDUE)
def test_overdue_jobs_run_in_the_order_of_their_mandatory_times(
    times: list[tuple[int, int]],
) -> None:
    """Q173388: in both agents, in any order of arrival."""
    times.sort(key=lambda each: each[1])
    services = [entry(mandatory_at=due, received=came) for due, came in times]
    users = [entry(mandatory_at=due, shown=came, state=State.OFFERED) for due, came in times]
    for rules, came in ((SERVICE, services), (INTERACTIVE, users)):
        waiting = held_back(rules, came)
        starts = {
            one.job.id: (rules.next(one, T0 + 59, claimed=True).at, due_order(one))
            for one in waiting
        }
        in_order = sorted(waiting, key=lambda one: starts[one.job.id])
        assert in_order == sorted(waiting, key=lambda one: one.mandatory_at or 0)
        # `pcm why` computes the same from each alone.
        since = rules.waits_since
        wait = rules.countdown if isinstance(rules, InteractiveRules) else 0
        known = [(one.mandatory_at or 0, getattr(one, since)) for one in came]
        for one, (due, raw) in zip(waiting, known, strict=True):
            assert getattr(one, since) == held_back_since(raw, due, wait, known)


@pytest.mark.parametrize(
    "other",
    [
        entry(mandatory_at=-30, received=0, shown=0),  # due before it
        entry(mandatory_at=-10, received=9, shown=9),  # waits for longer than it anyway
        entry(mandatory_at=1000, received=0, shown=0),  # not overdue: runs at its time
        entry(mandatory_at=-10, received=0, shown=0, state=State.ACCEPTED),  # the user wants it now
        entry(mandatory_at=-10, received=0, shown=0, state=State.STARTED),
        entry(mandatory_at=-10, received=0, background=True),
        entry(received=0, shown=0),  # optional
    ],
)
def test_no_other_job_is_held_back_for_an_overdue_one(other: JobRecord) -> None:
    came = entry(mandatory_at=-20, received=5, shown=5)
    for rules in (SERVICE, INTERACTIVE):
        assert rules.overtaking(came, [other]) == []


@given(
    st.booleans(),
    st.sampled_from([State.RECEIVED, State.OFFERED, State.DECLINED, State.ACCEPTED]),
    st.integers(-1000, 0),
    st.none() | st.integers(-1000, 1000),
    st.none() | st.integers(1, 1000),
)
def test_a_job_starts_when_the_listing_says(
    background: bool,  # noqa: FBT001
    state: State,
    shown: int,
    mandatory_at: int | None,
    valid: int | None,
) -> None:
    """`start` is the time of the run that comes next, or never where the job ends before."""
    held = entry(
        background=background,
        received=shown,
        state=state,
        shown=None if state is State.RECEIVED else shown,
        mandatory_at=mandatory_at,
        expires_at=None if valid is None else max(mandatory_at or 0, 0) + valid,
    )
    for rules in (SERVICE, INTERACTIVE):
        following = rules.next(held, T0, claimed=True)
        if following.step is Step.OFFER:
            shown_now = replace(held, state=State.OFFERED, shown_at=T0)
            following = rules.next(shown_now, T0, claimed=True)
        runs_at = following.at if following.step is Step.RUN else NEVER
        assert rules.start(held, T0) == runs_at


def test_after_sleep_a_countdown_that_would_be_cut_restarts() -> None:
    """It ends at the mandatory time at the earliest, and is complete from the wake-up on."""
    for now, mandatory_at, restarts in ((0, 301, False), (0, 299, True), (900, 100, True)):
        offered = entry(state=State.OFFERED, shown=-1000, mandatory_at=mandatory_at)
        assert INTERACTIVE.restarts_wait(offered, T0 + now) is restarts
        shown = replace(offered, shown_at=T0 + now)
        assert INTERACTIVE.deadline(shown, T0 + now) == T0 + max(mandatory_at, now + 300)
    for record in (
        entry(state=State.OFFERED, shown=-1000),
        entry(state=State.ACCEPTED, shown=-1000, mandatory_at=100),
        entry(state=State.STARTED, shown=-1000, mandatory_at=100),
        entry(mandatory_at=100),
        entry(state=State.OFFERED, shown=-1000, mandatory_at=100, cancelled=""),
        entry(state=State.OFFERED, shown=-1000, mandatory_at=100, expires_at=500),
    ):
        assert not INTERACTIVE.restarts_wait(record, T0 + 900)


def test_after_sleep_the_services_grace_restarts() -> None:
    slept = entry(received=-1000, mandatory_at=100)
    assert not SERVICE.restarts_wait(slept, T0 + 50)
    assert SERVICE.restarts_wait(slept, T0 + 900)
    waits = replace(slept, received_at=T0 + 900)
    assert step(SERVICE.next(waits, T0 + 900, claimed=False)) == (Step.RUN, 960)
    for record in (
        entry(background=True, received=-1000, mandatory_at=100),
        entry(received=-1000, mandatory_at=100, user_input_required=True),
        entry(received=-1000),
        entry(received=-1000, mandatory_at=100, expires_at=500),
    ):
        assert not SERVICE.restarts_wait(record, T0 + 900)


def test_a_job_for_others_is_not_applicable() -> None:
    """By any binding."""
    job = entry(background=True)
    for targets, step in (({group("lab")}, Step.CLOSE), ({everyone, group("lab")}, Step.RUN)):
        rules = ServiceRules(replace(LINUX, targets=frozenset(targets)), takeover_grace=60)
        assert rules.next(job, T0, claimed=False).step is step
