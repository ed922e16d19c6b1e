"""The changes of the clock that an agent notices."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from agents.jobs.clock import Clock
from schemas.maintenance_windows import parse_windows
from schemas.times import at_wall


class Times:
    """The machine's clocks, as a test sets them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.wall, self.awake, self.asleep = 1_000_000.0, 1000.0, 0.0
        patch.setattr(time, "time", lambda: self.wall)
        patch.setattr(time, "monotonic", lambda: self.awake)
        patch.setattr(time, "clock_gettime", self._get)

    def _get(self, clock: int) -> float:
        return self.awake + (self.asleep if clock == time.CLOCK_BOOTTIME else 0)

    def advance(self, wall: float = 0, awake: float = 0, asleep: float = 0) -> None:
        self.wall += wall
        self.awake += awake
        self.asleep += asleep


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch)


def test_sleep_is_no_jump_of_the_clock(times: Times) -> None:
    clock = Clock()
    assert not clock.look()
    times.advance(wall=10, awake=10)
    assert not clock.look()
    times.advance(wall=3600, asleep=3600)
    assert clock.look() == (False, False, True)
    assert not clock.look()
    times.advance(wall=3600)
    assert not clock.look()
    times.advance(wall=-7200, awake=1)
    assert clock.look() == (True, False, False)
    times.advance(wall=0.5, awake=1, asleep=0.5)
    assert not clock.look()


@pytest.fixture
def zone_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The link to the local zone's file."""
    link = tmp_path / "localtime"
    link.symlink_to("/usr/share/zoneinfo/Asia/Tokyo")
    monkeypatch.setenv("TZ", f":{link}")
    time.tzset()
    yield link
    monkeypatch.undo()
    time.tzset()


def test_local_times_follow_the_zone(zone_link: Path) -> None:
    clock, night, windows = (
        Clock(),
        datetime.fromisoformat("2026-11-30T02:00"),
        parse_windows("daily 02:00-03:00"),
    )
    tokyo = at_wall(night).timestamp()
    assert windows.start(tokyo, 60) == tokyo
    zone_link.unlink()
    zone_link.symlink_to("/usr/share/zoneinfo/Asia/Kolkata")
    assert clock.look() == (False, True, False)
    kolkata = at_wall(night).timestamp()
    assert kolkata - tokyo == 3.5 * 3600
    assert windows.start(tokyo, 60) == kolkata
    assert not clock.look()
    zone_link.unlink()  # then it is UTC, as for the C library
    assert clock.look().zone
    assert at_wall(night).timestamp() - kolkata == 5.5 * 3600
