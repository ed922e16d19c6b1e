"""`pcm-agent pending` shows the minute at which an agent starts a job by its policy."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.store.repair import open_ledger
from agents.store.transaction import JobRecord, Transaction
from agents.user import listing
from schemas import Command, Job, Pause, State, everyone

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
COUNTDOWN, GRACE = timedelta(minutes=30), timedelta(minutes=5)
SERVICE, ADA = "service", "interactive-ada"


def window(after: timedelta) -> tuple[str, datetime]:
    """Return a window of an hour, and when it opens: so long from now, in whole minutes."""
    begin = (NOW + after).astimezone().replace(second=0)
    return f"{begin:%H:%M}-{begin + HOUR:%H:%M}", begin


def starts_at(
    state_dir: Path,
    agent: str,
    state: State = State.RECEIVED,
    *,
    windows: str = "",
    shown_at: datetime | None = None,
    paused: bool = False,
    background: bool = False,
    **fields: Any,
) -> datetime | None:
    """Return the start in the listing, of a job in the ledger of an agent."""
    folder = state_dir / agent
    folder.mkdir()
    command = Command(argv=("true",), background=background, timeout=timedelta(minutes=1))
    job = Job(command=command, targets=(everyone,), created_at=NOW - HOUR, **fields)
    database = open_ledger(folder / "ledger.db")
    transaction = Transaction(database)
    transaction.insert(
        JobRecord(
            job,
            (NOW - HOUR).timestamp(),
            state,
            shown_at=shown_at.timestamp() if shown_at else None,
        )
    )
    transaction.mark_running(time.time(), windows, COUNTDOWN.total_seconds(), GRACE.total_seconds())
    if paused:
        transaction.set_pause(Pause(workstation="ws", paused=True))
    database.close()
    (row,) = listing.pending(state_dir)
    text = row["starts_at"]
    return None if text is None else datetime.fromisoformat(text)


def test_the_service_takes_over_after_its_grace_period(tmp_path: Path) -> None:
    assert starts_at(tmp_path, SERVICE, mandatory_at=NOW + HOUR) == NOW + HOUR + GRACE


def test_a_window_that_opens_with_the_mandatory_time_is_no_earlier_start(tmp_path: Path) -> None:
    windows, opens_at = window(HOUR)
    found = starts_at(
        tmp_path, SERVICE, windows=windows, mandatory_at=opens_at, respects_windows=True
    )
    assert found == opens_at + GRACE


def test_a_user_has_a_whole_countdown(tmp_path: Path) -> None:
    found = starts_at(tmp_path, ADA, State.OFFERED, shown_at=NOW, mandatory_at=NOW + GRACE)
    assert found == NOW + COUNTDOWN


def test_the_countdown_ends_in_a_window(tmp_path: Path) -> None:
    windows, opens_at = window(2 * HOUR)
    found = starts_at(
        tmp_path,
        ADA,
        State.OFFERED,
        windows=windows,
        shown_at=NOW,
        mandatory_at=NOW + HOUR,
        respects_windows=True,
    )
    assert found == opens_at


def test_a_job_that_is_not_yet_shown_counts_down_from_its_offer(tmp_path: Path) -> None:
    found = starts_at(tmp_path, ADA, offer_at=NOW + HOUR, mandatory_at=NOW + HOUR)
    assert found == NOW + HOUR + COUNTDOWN


def test_an_accepted_job_starts_in_the_window(tmp_path: Path) -> None:
    windows, opens_at = window(HOUR)
    found = starts_at(tmp_path, ADA, State.ACCEPTED, windows=windows, respects_windows=True)
    assert found == opens_at


@pytest.mark.parametrize(
    ("agent", "fields"),
    [
        (SERVICE, {"background": True}),  # it starts now
        (SERVICE, {"background": True, "mandatory_at": NOW + HOUR, "paused": True}),
        (SERVICE, {"background": True, "mandatory_at": NOW + HOUR, "state": State.STARTED}),
        (SERVICE, {}),  # optional: only a user starts it
        (ADA, {"state": State.OFFERED, "shown_at": NOW}),
    ],
)
def test_no_start_is_reported_where_there_is_none(
    tmp_path: Path, agent: str, fields: dict[str, Any]
) -> None:
    assert starts_at(tmp_path, agent, **fields) is None


def test_a_job_that_expires_before_its_window_never_starts(tmp_path: Path) -> None:
    windows, _ = window(2 * HOUR)
    found = starts_at(
        tmp_path,
        SERVICE,
        windows=windows,
        background=True,
        expires_at=NOW + HOUR,
        respects_windows=True,
    )
    assert found is None
