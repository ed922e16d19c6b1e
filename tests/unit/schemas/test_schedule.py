"""A schedule's occurrences: when they are, in every zone, and which ids they have."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import Command, Job, Schedule, WallClock, everyone, explain
from schemas.orders.schedule import LEAD, Occurrence

ADDED = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = (
    None,
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Pacific/Kiritimati",
    "Pacific/Niue",
    "Asia/Kathmandu",
)
REPEATS = ("* * * * *", "*/15 * * * *", "30 2 * * *", "0 0,12 * * 1-5", "59 23 L * *", "0 3 1 * 0")


def job(**fields: Any) -> Job:
    return Job(command=Command(argv=("true",)), targets=(everyone,), **fields)


def schedule(repeat: str = "0 2 * * *", zone: str | None = "UTC", **fields: Any) -> Schedule:
    of = fields.pop("job", None) or job()
    return Schedule(name="s", repeat=repeat, zone=zone, job=of, created_at=ADDED, **fields)


def problem(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        schedule(**fields)
    return explain(caught.value)


def instants(repeat: str, zone: str, day: str, hours: int = 24) -> list[str]:
    """Return the occurrences of a day, as its zone and UTC show them."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    found = schedule(repeat, zone).times(
        start - timedelta(seconds=1), start + timedelta(hours=hours)
    )
    return [f"{each.local:%H:%M}={each.send_at:%dT%H:%M}" for each in found]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"repeat": "* * * *"}, "repeat: '* * * *': has 4 fields"),
        ({"repeat": "0 * * * * *"}, "repeat"),
        ({"repeat": ""}, "repeat"),
        ({"repeat": "60 * * * *"}, "repeat: '60 * * * *': Bad minute"),
        ({"repeat": "0 0 30 2 *"}, "repeat: '0 0 30 2 *': Bad day"),
        ({"repeat": "0 0 * * ²L"}, "repeat"),
        ({"repeat": "0 0 * * " + "9" * 5000}, "repeat"),
        ({"zone": "Berlin"}, "zone: 'Berlin' is not a time zone"),
        ({"zone": ""}, "zone"),
        ({"zone": "Europe"}, "zone"),
        ({"zone": "../../etc/passwd"}, "zone"),
        ({"missed": "all"}, "missed"),
        ({"mandatory_after": -1}, "mandatory_after: must be 0 or more"),
        ({"expires_after": 0}, "expires_after"),
        ({"expires_after": 60, "mandatory_after": 60}, "expires_after"),
        ({"job": job(offer_at=ADDED)}, "job.offer_at"),
        ({"job": job(mandatory_at=ADDED)}, "job.mandatory_at"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], named: str) -> None:
    seen = problem(**fields)
    assert named in seen
    assert len(seen) < 500


@given(st.text(alphabet="0123456789*/,-LW#? SUNMONTUEJAN²", max_size=30))
def test_any_text_is_a_repetition_or_refused(text: str) -> None:
    try:
        found = schedule(text)
    except ValidationError:
        return
    assert next(found.coming(ADDED)).send_at > ADDED


@pytest.mark.parametrize(
    ("repeat", "zone", "day", "expected"),
    [
        # The clock goes from 02:00 to 03:00: what it skips comes at 03:00, and once.
        ("30 2 * * *", "Europe/Berlin", "2026-03-29", ["02:30=29T01:00"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29", ["03:00=29T01:00"]),
        ("15,45 1-3 * * *", "Europe/Berlin", "2026-03-29",
         ["01:15=29T00:15", "01:45=29T00:45", "02:45=29T01:00", "03:15=29T01:15",
          "03:45=29T01:45"]),
        # It goes from 03:00 back to 02:00: what it shows twice comes at the first time.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25", ["02:30=25T00:30"]),
        ("0 2-3 * * *", "Europe/Berlin", "2026-10-25", ["02:00=25T00:00", "03:00=25T02:00"]),
        # Half an hour, there and back.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04", ["02:15=03T15:30"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-05", ["01:45=04T14:45"]),
        ("*/15 1 * * *", "Australia/Lord_Howe", "2026-04-05",
         ["01:00=04T14:00", "01:15=04T14:15", "01:30=04T14:30", "01:45=04T14:45"]),
        # At midnight, and a day that is not at all.
        ("0 0 * * *", "Africa/Cairo", "2026-04-24", ["00:00=23T22:00", "00:00=24T21:00"]),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29", ["12:00=29T22:00", "12:00=30T10:00"]),
    ],
)  # fmt: skip
def test_clocks_that_skip_or_repeat_a_time(
    repeat: str, zone: str, day: str, expected: list[str]
) -> None:
    assert instants(repeat, zone, day) == expected


def test_the_29th_of_february() -> None:
    found = islice(schedule("0 0 29 2 *").coming(ADDED), 2)
    assert [each.local.year for each in found] == [2028, 2032]


def test_by_each_workstations_clock_it_is_sent_before_the_first_shows_it() -> None:
    (found,) = schedule("0 2 * * *", None, mandatory_after=0, expires_after=3600).times(
        ADDED, ADDED + timedelta(days=1)
    )
    assert found.instant is None
    assert found.send_at == datetime(2026, 1, 1, 11, tzinfo=UTC)
    assert found.begins_at == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert found.begins_at.astimezone(ZoneInfo("Pacific/Kiritimati")).hour == 2
    assert found.ends_at == datetime(2026, 1, 2, 15, tzinfo=UTC)
    assert found.ends_at - found.send_at - timedelta(hours=1) <= LEAD


def test_an_occurrences_job_has_times_of_its_own() -> None:
    soon = datetime.now(UTC).replace(tzinfo=None, microsecond=0) + timedelta(days=1)
    of = schedule(zone="Europe/Berlin", mandatory_after=60, expires_after=3600)
    at = Occurrence(of, soon)
    assert at.instant is not None
    made = at.job()
    assert (made.id, made.schedule, made.name) == (at.id, "s", "s")
    assert (made.offer_at, made.mandatory_at, made.expires_at) == (
        at.instant,
        at.instant + timedelta(minutes=1),
        at.instant + timedelta(hours=1),
    )
    assert Job.read(made.body()) == made
    walls = Occurrence(schedule(zone=None, mandatory_after=0), soon).job()
    assert walls.offer_at == walls.mandatory_at == WallClock(local=soon)


def test_who_made_it_and_when_does_not_matter_to_the_job() -> None:
    at = datetime(2030, 1, 1, 2)  # noqa: DTZ001 - by a clock
    one = Occurrence(schedule(job=job(id="one", sender="a")), at)
    other = Occurrence(schedule(job=job(id="other", sender="b"), sender="b"), at)
    assert one.id == other.id
    assert one.job().digest() == other.job().digest()


def test_whatever_is_asked_otherwise_is_another_job() -> None:
    at = datetime(2030, 1, 1, 2)  # noqa: DTZ001 - by a clock
    asked: list[dict[str, Any]] = [
        {},
        {"zone": "Europe/Berlin"},
        {"zone": None},
        {"repeat": "0 2 * * 1-7"},
        {"mandatory_after": 0},
        {"expires_after": 60},
        {"job": job(name="other")},
        {"job": job(excluded=("group:x",))},
    ]
    ids = {Occurrence(schedule(**fields), at).id for fields in asked}
    ids.add(Occurrence(schedule(), at + timedelta(days=1)).id)
    assert len(ids) == len(asked) + 1


def test_ids_are_the_same_in_every_process() -> None:
    code = (
        "from datetime import datetime\n"
        "from schemas import Schedule\n"
        "from schemas.orders.schedule import Occurrence\n"
        "import sys\n"
        "at = Occurrence(Schedule.read(sys.stdin.read()), datetime(2030, 1, 1, 2))\n"
        "print(at.id, at.job().digest())"
    )
    command = Command(
        argv=("true",),
        platforms=frozenset({"linux", "macos", "freebsd", "windows"}),
        success_exit_codes=frozenset(range(20)),
        environment={"B": "1", "A": "2"},
    )
    body = schedule(job=Job(command=command, targets=(everyone,)), expires_after=60).body()
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=body,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


_moments = st.datetimes(
    datetime(2026, 1, 1),  # noqa: DTZ001
    datetime(2027, 12, 31),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, ZoneInfo("Europe/Berlin")]),
)


@given(
    repeat=st.sampled_from(REPEATS),
    zone=st.sampled_from(ZONES),
    start=_moments,
    cuts=st.lists(st.integers(0, 3 * 86400 * 10).map(lambda tenths: tenths / 10), max_size=6),
)
@example("30 2 * * *", "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC), [46800.0])
@example(
    "*/15 * * * *", "Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC), [44100.0, 48600.0]
)
@example("*/15 * * * *", "Australia/Lord_Howe", datetime(2026, 4, 4, 12, tzinfo=UTC), [9900.0])
def test_however_an_interval_is_cut_each_occurrence_comes_once(
    repeat: str, zone: str | None, start: datetime, cuts: list[float]
) -> None:
    found = schedule(repeat, zone)
    offsets = sorted({0.0, *cuts, 3 * 86400.0})
    marks = [start.astimezone(UTC) + timedelta(seconds=offset) for offset in offsets]
    whole = list(found.times(marks[0], marks[-1]))
    parts = [each for first, last in pairwise(marks) for each in found.times(first, last)]
    assert parts == whole
    times = [each.send_at for each in whole]
    assert all(one < other for one, other in pairwise(times))
    assert len({each.id for each in whole}) == len(whole)


@given(zone=st.sampled_from(ZONES[1:]), start=_moments)
def test_no_time_of_the_clock_is_left_out(zone: str, start: datetime) -> None:
    """Each quarter of an hour is an occurrence when the zone's clock first shows it."""
    quarter = timedelta(minutes=15)
    first = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    shown = {
        moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0): moment
        for moment in (first + quarter * number for number in range(4 * 30, -1, -1))
    }
    before = {
        (first - quarter * number).astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)
        for number in range(1, 13)
    }
    expected = sorted(moment for local, moment in shown.items() if local not in before)
    found = schedule("*/15 * * * *", zone).times(
        first - timedelta(seconds=1), first + quarter * 4 * 30
    )
    assert [each.send_at for each in found] == expected


def test_it_says_in_words_when_it_is() -> None:
    assert schedule("0 2 * * 0").explain() == "At 02:00 on Sunday"
