"""Maintenance windows: on the workstation's clock, over midnight and over clock changes."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.store.transaction import JobRecord
from schemas import Command, Job, State, everyone
from schemas.maintenance_windows import parse_windows
from schemas.policy import Host, InteractiveRules, ServiceRules, Step
from schemas.times import NEVER

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = 3600.0
DAY = 24 * HOUR


def berlin(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def start(windows: str, now: str, hours: float) -> str:
    """Return when something of so many hours may start, as Berlin's clock shows it."""
    found = parse_windows(windows).start(berlin(now), hours * HOUR, BERLIN)
    if found == NEVER:
        return "never"
    return f"{datetime.fromtimestamp(found, UTC).astimezone(BERLIN):%a %Y-%m-%d %H:%M %Z}"


@pytest.mark.parametrize(
    ("windows", "now", "hours", "starts"),
    [
        ("Sun 02:00-06:00", "2026-11-27 12:00", 1, "Sun 2026-11-29 02:00 CET"),
        ("Sun 02:00-06:00", "2026-11-29 03:30", 1, "Sun 2026-11-29 03:30 CET"),
        ("Sun 02:00-06:00", "2026-11-29 05:00", 1, "Sun 2026-11-29 05:00 CET"),
        ("Sun 02:00-06:00", "2026-11-29 05:01", 1, "Sun 2026-12-06 02:00 CET"),
        ("Sun 02:00-06:00", "2026-11-27 12:00", 4, "Sun 2026-11-29 02:00 CET"),
        ("Sun 02:00-06:00", "2026-11-27 12:00", 4.1, "never"),
        # A short one first, into which it does not fit.
        ("Sat 01:00-01:30, Sun 02:00-06:00", "2026-11-27 12:00", 1, "Sun 2026-11-29 02:00 CET"),
        ("Mon-Fri 22:00-23:00", "2026-11-27 23:30", 1, "Mon 2026-11-30 22:00 CET"),
        ("fri-mon 22:00-23:00", "2026-11-27 23:30", 1, "Sat 2026-11-28 22:00 CET"),
        ("daily 22:00-23:00", "2026-11-27 23:30", 1, "Sat 2026-11-28 22:00 CET"),
        ("22:00-23:00", "2026-11-27 23:30", 1, "Sat 2026-11-28 22:00 CET"),
        # Over midnight: the day is that on which it begins.
        ("Sat 22:00-04:00", "2026-11-28 03:00", 1, "Sat 2026-11-28 22:00 CET"),
        ("Sat 22:00-04:00", "2026-11-29 02:30", 1, "Sun 2026-11-29 02:30 CET"),
        ("Sat 22:00-04:00", "2026-11-29 03:30", 1, "Sat 2026-12-05 22:00 CET"),
        ("Sun 22:00-04:00", "2026-11-30 02:30", 1, "Mon 2026-11-30 02:30 CET"),
        # What touches is one window.
        ("Sat 22:00-24:00, Sun 00:00-04:00", "2026-11-28 12:00", 6, "Sat 2026-11-28 22:00 CET"),
        ("Sat 20:00-23:00, Sat 22:00-02:00", "2026-11-28 12:00", 6, "Sat 2026-11-28 20:00 CET"),
        ("daily 00:00-24:00", "2026-11-28 12:00", 24 * 365, "Sat 2026-11-28 12:00 CET"),
        # On 2026-03-29 Berlin's clock skips 02:00 to 03:00, on 2026-10-25 it shows it twice.
        ("Sun 02:00-06:00", "2026-03-28 12:00", 3, "Sun 2026-03-29 03:00 CEST"),
        ("Sun 02:00-06:00", "2026-03-28 12:00", 3.5, "Sun 2026-04-05 02:00 CEST"),
        ("Sun 02:00-03:00", "2026-03-28 12:00", 0.5, "Sun 2026-04-05 02:00 CEST"),
        ("Sun 01:00-02:30", "2026-03-29 00:00", 1, "Sun 2026-03-29 01:00 CET"),
        ("Sun 01:00-02:30", "2026-03-29 00:00", 1.25, "Sun 2026-04-05 01:00 CEST"),
        ("Sun 02:00-06:00", "2026-10-24 12:00", 5, "Sun 2026-10-25 02:00 CEST"),
        ("Sat 22:00-04:00", "2026-03-28 12:00", 5, "Sat 2026-03-28 22:00 CET"),
        ("Sat 22:00-04:00", "2026-03-28 12:00", 5.5, "Sat 2026-04-04 22:00 CEST"),
        ("daily 00:00-24:00", "2026-03-28 12:00", 24 * 30, "Sat 2026-03-28 12:00 CET"),
    ],
)
def test_what_must_end_in_its_window_starts_in_the_first_that_is_long_enough(
    windows: str, now: str, hours: float, starts: str
) -> None:
    assert start(windows, now, hours) == starts


def test_without_windows_nothing_is_held_back() -> None:
    assert parse_windows("  ").start(berlin("2026-11-27 12:00"), 1000 * DAY) == berlin(
        "2026-11-27 12:00"
    )


@given(
    st.integers(0, 1439),
    st.integers(1, 1440),
    st.floats(0, 400 * DAY),
    st.floats(1, 23 * HOUR),
)
def test_a_start_is_never_early_nor_outside_a_window(
    begin: int, length: int, after: float, duration: float
) -> None:
    end = (begin + length) % 1440
    clock = [f"{minutes // 60:02}:{minutes % 60:02}" for minutes in (begin, end)]
    if begin == end:
        clock = ["00:00", "24:00"]
    now = berlin("2026-01-01 00:00") + after
    found = parse_windows(f"daily {clock[0]}-{clock[1]}").start(now, duration, UTC)
    if duration > length * 60:
        assert found == NEVER
        return
    assert now <= found <= now + DAY
    into = (found / 60 - begin) % 1440
    assert begin == end or into * 60 + duration <= length * 60 + 1


# Decisions of the agents; the clock of this machine, in any zone.

_NOW = datetime(2026, 11, 27, 12).astimezone()
NOW = _NOW.timestamp()
OPENS = datetime(2026, 11, 29, 2).astimezone().timestamp()
PLACE = Host(frozenset({"linux"}), windows=parse_windows("Sun 02:00-06:00"))
SERVICE = ServiceRules(PLACE, takeover_grace=60)
INTERACTIVE = InteractiveRules(PLACE, countdown=300)


def entry(*, background: bool = False, mandatory: bool = True, **fields: object) -> JobRecord:
    hours = fields.pop("hours", 1)
    assert isinstance(hours, (int, float))
    command = Command(argv=("true",), background=background, timeout=timedelta(hours=hours))
    job = Job(
        command=command,
        targets=(everyone,),
        respects_windows=bool(fields.pop("respects_windows", True)),
        created_at=_NOW,
        mandatory_at=_NOW if mandatory else None,
        expires_at=fields.pop("expires_at", None),  # type: ignore[arg-type]
    )
    return JobRecord(job, NOW, **fields)  # type: ignore[arg-type]


def test_the_service_runs_a_job_in_its_window() -> None:
    for held in (
        entry(background=True),
        entry(background=True, mandatory=False),
        entry(background=True, state=State.STARTED, starts=1),  # interrupted, to be run again
        entry(),
    ):
        following = SERVICE.next(held, NOW, claimed=False)
        assert (following.step, following.at) == (Step.RUN, OPENS)
    free = entry(background=True, respects_windows=False)
    assert SERVICE.next(free, NOW, claimed=False).at == NOW


def test_a_job_that_is_due_in_a_window_is_due_at_its_own_time() -> None:
    """Otherwise each computation would move the start."""
    following = SERVICE.next(entry(background=True), OPENS + HOUR, claimed=False)
    assert (following.step, following.at) == (Step.RUN, NOW)


def test_a_countdown_ends_with_the_beginning_of_the_window() -> None:
    held = entry(shown_at=NOW, state=State.OFFERED)
    following = INTERACTIVE.next(held, NOW, claimed=False)
    assert (following.step, following.at) == (Step.COUNT_DOWN, OPENS - 300)
    following = INTERACTIVE.next(held, OPENS - 300, claimed=True)
    assert (following.step, following.at) == (Step.RUN, OPENS)
    assert INTERACTIVE.next(held, OPENS + 1, claimed=True).at <= OPENS + 1


def test_what_a_user_wants_now_is_claimed_and_waits_for_the_window() -> None:
    held = entry(shown_at=NOW, state=State.ACCEPTED)
    assert INTERACTIVE.next(held, NOW, claimed=False).step is Step.COUNT_DOWN
    following = INTERACTIVE.next(held, NOW, claimed=True)
    assert (following.step, following.at) == (Step.RUN, OPENS)
    following = INTERACTIVE.next(held, OPENS, claimed=False)
    assert (following.step, following.at) == (Step.RUN, 0)


@pytest.mark.parametrize("rules", [SERVICE, INTERACTIVE])
def test_what_fits_in_no_window_is_not_applicable_at_once(
    rules: ServiceRules | InteractiveRules,
) -> None:
    following = rules.next(entry(hours=5), NOW, claimed=False)
    assert (following.step, following.at, following.state) == (Step.CLOSE, 0, State.NOT_APPLICABLE)
    assert following.reason == "its timeout of 5h fits in no maintenance window: Sun 02:00-06:00"


@pytest.mark.parametrize("rules", [SERVICE, INTERACTIVE])
def test_a_job_that_waits_for_its_window_expires(rules: ServiceRules | InteractiveRules) -> None:
    expires_at = _NOW + timedelta(hours=3)
    held = entry(expires_at=expires_at, shown_at=NOW, state=State.OFFERED)
    following = rules.next(held, NOW, claimed=True)
    assert (following.step, following.at) == (Step.CLOSE, expires_at.timestamp())
