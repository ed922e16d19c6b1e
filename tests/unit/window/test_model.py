"""The texts of a snapshot's rows."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from agents.window import model, times
from agents.window.snapshot import EndedJob, Offer, parse_snapshot
from tests.support import standin
from tests.support.standin import NOW


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def _offer(job: str = "a", **fields: Any) -> Offer:
    return parse_snapshot(standin.snapshot(offers=[standin.offer(job, job, **fields)])).offers[0]


def _ended(**fields: Any) -> EndedJob:
    return parse_snapshot(standin.snapshot(history=[standin.ended("a", "a", **fields)])).history[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"),
        (59.2, "1 min 00 s"),
        (59, "59 s"),
        (725, "12 min 05 s"),
        (3 * 3600 + 300, "3 h 05 min"),
        (50 * 3600, "2 d 02 h"),
    ],
)
def test_a_countdown_in_words(seconds: float, words: str) -> None:
    assert times.remaining(seconds) == words


@pytest.mark.parametrize(
    ("text", "after"),
    [("45m", 2700), ("+2h", 7200), ("30 min", 1800), ("11:30", 1400), ("11:00", 86000)],
)
def test_a_time_as_a_user_writes_it(text: str, after: float) -> None:
    assert times.parse_time(text, NOW) - NOW == after


@pytest.mark.parametrize("text", ["", "soon", "25:00", "99"])
def test_what_is_no_time_is_reported(text: str) -> None:
    with pytest.raises(ValueError, match="Enter a time such as"):
        times.parse_time(text, NOW)


def test_what_runs_next_by_itself_is_first() -> None:
    offers = (
        _offer("optional"),
        _offer("later", deadline=NOW + 7200),
        _offer("declined", state="declined"),
        _offer("soon-but-postponed", deadline=NOW + 50, state="postponed", until=NOW + 40),
        _offer("sooner", deadline=NOW + 3600),
    )
    jobs = [offer.job for offer in model.sorted_offers(offers, NOW, {})]
    assert jobs == ["soon-but-postponed", "sooner", "later", "optional", "declined"]


def test_the_bar_shrinks_to_nothing() -> None:
    offer = _offer(deadline=NOW + 800)
    bars = [
        model.progress_bar(offer, NOW + after, NOW).count("\u2588")
        for after in (0, 400, 700, 800, 900)
    ]
    assert bars == [8, 4, 1, 0, 0]
    assert model.progress_bar(_offer(), NOW, NOW) == ""


def test_postponements_end_before_the_mandatory_time_and_the_expiry() -> None:
    assert model.postponements(_offer(deadline=NOW + 3601), NOW)[-1] == 3600
    assert model.postponements(_offer(deadline=NOW + 9999, expires_at=NOW + 400), NOW)[-1] == 300
    assert model.postponements(_offer(deadline=NOW + 30), NOW) == []
    assert min(model.postponements(_offer(min_interval=900.0), NOW)) >= 900


def test_what_the_user_may_do() -> None:
    optional, mandatory = _offer(), _offer(deadline=NOW + 60)
    assert all(
        model.is_allowed(do, optional, NOW) for do in ("run_now", "postpone", "remind", "decline")
    )
    assert not model.is_allowed("decline", mandatory, NOW)
    assert not model.is_allowed("postpone", replace(mandatory, postponements_left=0), NOW)
    assert not any(
        model.is_allowed(do, replace(optional, state="accepted"), NOW)
        for do in ("run_now", "postpone")
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "finished"),
        ({"restart_required": True}, "finished: needs a restart"),
        ({"state": "failed", "exit_code": 2}, "failed: exit code 2"),
        ({"state": "failed", "exit_code": None, "signal": 9}, "failed: ended by signal 9"),
        ({"state": "failed", "exit_code": None}, "failed: could not be started"),
        ({"state": "timed_out"}, "timed out"),
        ({"state": "cancelled"}, "stopped"),
        ({"state": "cancelled", "duration": None}, "cancelled, not run"),
        ({"state": "expired", "duration": None}, "expired, not run"),
    ],
)
def test_a_result_in_words_with_a_sign(fields: dict[str, Any], words: str) -> None:
    sign, _, shown = model.format_result(_ended(**fields)).partition(" ")
    assert shown == words
    assert len(sign) == 1


def test_what_a_newer_agent_tells_besides_is_left_out() -> None:
    line = standin.snapshot(offers=[{**standin.offer("a", "A"), "colour": "blue"}], extra=1)
    assert parse_snapshot(line).offers[0].name == "A"
