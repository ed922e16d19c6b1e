"""When a time on clocks on the wall has come somewhere, and everywhere."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from schemas import WallClock
from schemas.times import earliest, find_zone, latest

NOON = datetime(2026, 12, 1, 12)  # noqa: DTZ001 - on each clock
AT_KIRITIMATI = timezone(timedelta(hours=14))
AT_BAKER_ISLAND = timezone(-timedelta(hours=12))


def test_a_time_on_all_clocks_comes_first_at_kiritimati_and_last_at_baker_island() -> None:
    moment = WallClock(local=NOON)
    assert earliest(moment) == NOON.replace(tzinfo=AT_KIRITIMATI)
    assert latest(moment) == NOON.replace(tzinfo=AT_BAKER_ISLAND)


def test_an_instant_comes_everywhere_at_once() -> None:
    instant = NOON.replace(tzinfo=UTC)
    assert earliest(instant) == latest(instant) == instant


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "Etc/GMT+12", "America/Port-au-Prince"])
def test_a_zone_is_found_by_its_name(name: str) -> None:
    assert find_zone(name) is not None


@pytest.mark.parametrize(
    "name", ["", "Berlin", "../etc/passwd", "a." * 2000, "a/" * 2000, "x" * 101, "\0", "\udcff"]
)
def test_what_is_no_zone_is_not_looked_for(name: str) -> None:
    assert find_zone(name) is None
