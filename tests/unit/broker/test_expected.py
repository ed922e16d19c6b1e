"""`pcm why` gives the instant at which the agent acts: both use one policy.

The agent's side is its ledger's record, its settings and its own clock; the other side is made of
the reports and the check-in that the agent would have sent.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.store.transaction import JobRecord
from broker.cli.time_formats import local
from broker.history.projection.check_ins import _agent
from broker.history.queries.rows import Event
from broker.history.queries.workstations import AgentRow, _agent_row
from broker.results.why.circumstances import Circumstances
from broker.results.why.why import explain_state
from schemas import CheckIn, Facts, Job, State, WallClock, maintenance_windows
from schemas.policy import Host, InteractiveRules, Next, ServiceRules, Step
from schemas.times import NEVER
from tests.unit.broker.test_why import ADA, NOW, SERVICE, known, outcome

T0 = NOW.timestamp()
LINUX = Host(frozenset({"linux", "linux/x86_64"}))
ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Auckland")
WINDOWS = (
    "",
    "daily 00:00-24:00",
    "Sun 02:00-06:00",
    "daily 13:00-14:30, Tue 22:00-04:00",
    "Mon 12:30-12:45",  # too short for any job
)
WAITS = st.sampled_from([0, 1, 60, 300, 1800, 7200, 86_400])
AGO = st.integers(-36_000, 0)


@contextmanager
def clock(zone: str) -> Iterator[None]:
    """Let this process's clock be one of a zone, as the agent's is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        maintenance_windows._spans.cache_clear()  # noqa: SLF001 - of the clock that was
        yield
    time.tzset()
    maintenance_windows._spans.cache_clear()  # noqa: SLF001


@dataclass(frozen=True)
class Settings:
    """An agent's settings."""

    zone: str
    windows: str
    countdown: int
    takeover_grace: int
    accept_offers: bool

    @property
    def host(self) -> Host:
        """The workstation as the agent knows it."""
        return Host(LINUX.platforms, windows=maintenance_windows.parse_windows(self.windows))

    def row(self, agent: str, **more: Any) -> AgentRow:
        """Return the agent as the history keeps it."""
        check_in = CheckIn(
            workstation="ws",
            agent=agent,
            at=NOW,
            facts=Facts(os="linux", arch="x86_64"),
            windows=self.windows,
            zone=self.zone,
            countdown=timedelta(seconds=self.countdown),
            takeover_grace=timedelta(seconds=self.takeover_grace),
            accept_offers=self.accept_offers,
            interval=timedelta(minutes=1),
            **more,
        )
        return _agent_row(_agent(CheckIn.read(check_in.body())))


SETTINGS = st.builds(
    Settings, st.sampled_from(ZONES), st.sampled_from(WINDOWS), WAITS, WAITS, st.booleans()
)


@st.composite
def jobs(draw: st.DrawFn, *, background: bool) -> dict[str, Any]:
    """Return a job's fields: each of its times may be there, in their order, in any form."""
    stamps = sorted(draw(st.sets(st.integers(-20_000, 200_000), min_size=3, max_size=3)))
    on_the_wall = draw(st.booleans())
    fields: dict[str, Any] = {"background": background, "respects_windows": draw(st.booleans())}
    for name, after in zip(("offer_at", "mandatory_at", "expires_at"), stamps, strict=True):
        if draw(st.booleans()):
            moment = NOW + timedelta(seconds=after)
            fields[name] = WallClock(local=moment.replace(tzinfo=None)) if on_the_wall else moment
    expires_at = fields.get("expires_at")
    if isinstance(expires_at, datetime) and expires_at <= NOW:
        del fields["expires_at"]  # it is over, and `pcm why` says so without a time
    return fields


def job_of(circumstances: Circumstances) -> Job:
    assert circumstances.body is not None
    return circumstances.body


def instant(following: Next) -> float | None:
    """Return when a step is taken, if that is not at once, and not never."""
    return following.at if T0 < following.at < NEVER else None


@given(jobs(background=True), SETTINGS, AGO)
def test_the_service_starts_its_jobs_when_why_says(
    fields: dict[str, Any], settings: Settings, received: int
) -> None:
    at = timedelta(seconds=received)
    found = known(outcome("received", at), settings.row(SERVICE), **fields)
    with clock(settings.zone):
        record = JobRecord(job_of(found), T0 + received)
        following = ServiceRules(settings.host, settings.takeover_grace).next(
            record, T0, claimed=False
        )
    assert explain_state(found).next_at == instant(following)


@given(jobs(background=False), SETTINGS, AGO)
def test_the_service_takes_over_when_why_says(
    fields: dict[str, Any], settings: Settings, received: int
) -> None:
    at = timedelta(seconds=received)
    found = known(outcome("received", at), settings.row(SERVICE), **fields)
    with clock(settings.zone):
        record = JobRecord(job_of(found), T0 + received)
        host = settings.host
        following = ServiceRules(host, settings.takeover_grace).next(record, T0, claimed=False)
        offer = InteractiveRules(host, settings.countdown).next(record, T0, claimed=False)
    # A user who logs on meanwhile is offered it before.
    if offer.step is Step.OFFER and offer.at > T0:
        following = offer
    assert explain_state(found).next_at == instant(following)


@given(
    jobs(background=False),
    SETTINGS,
    st.sampled_from([State.OFFERED, State.POSTPONED, State.ACCEPTED, State.DECLINED]),
    st.lists(AGO, min_size=1, max_size=3),
    st.integers(1, 100_000),
    st.booleans(),
)
def test_a_user_s_agent_runs_or_offers_a_job_when_why_says(
    fields: dict[str, Any],
    settings: Settings,
    state: State,
    shown: list[int],
    until: int,
    paused: bool,  # noqa: FBT001
) -> None:
    if state is State.DECLINED:  # a mandatory job cannot be
        fields = {name: value for name, value in fields.items() if name != "mandatory_at"}
    pause: Any = {"workstation": "ws", "paused": True} if paused else None
    events = [Event(T0 + at, str(State.OFFERED), ADA, "", None) for at in sorted(shown)]
    end = T0 + until if state is State.POSTPONED else None
    found = known(
        outcome(str(state), timedelta(0), agent=ADA, until=end),
        *(settings.row(SERVICE), settings.row(ADA, pause=pause)),
        events=events,
        **fields,
    )
    rules = InteractiveRules(settings.host, settings.countdown, settings.accept_offers)
    with clock(settings.zone):
        record = JobRecord(
            job_of(found), T0 - 36_000, state=state, shown_at=T0 + min(shown), until=end
        )
        following = rules.next(record, T0, claimed=True, paused=paused)
    answer = explain_state(found)
    assert answer.next_at == instant(following)
    if following.step is Step.RUN and answer.next_at and "on its own clock" not in answer.next:
        assert local(answer.next_at, seconds=False) in answer.next
