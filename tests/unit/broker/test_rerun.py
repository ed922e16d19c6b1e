"""A job's command once more, where it failed."""

from datetime import UTC, datetime, timedelta
from typing import Any

from broker.jobs.rerun_jobs import new_job
from schemas import Command, Job, Requirement, WallClock, group, workstation

NOW = datetime(2026, 12, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def old(**fields: Any) -> Job:
    """Return a job that was made two hours ago."""
    fields = {"created_at": NOW - 2 * HOUR, "targets": (group("lab"),), **fields}
    return Job(command=Command(argv=("true",)), **fields)


def test_it_is_the_same_command_for_those_named() -> None:
    job = old(
        name="update",
        excluded=(workstation("c"),),
        rollout="r",
        schedule="s",
        supersedes="k",
    )
    new = new_job(job, ["a", "b"], NOW)
    assert (new.rerun_of, new.created_at, new.name) == (job.id, NOW, "update")
    assert new.command == job.command
    assert new.targets == (workstation("a"), workstation("b"))
    assert (new.excluded, new.rollout, new.schedule, new.supersedes) == ((), None, None, "k")
    assert new.id != job.id


def test_times_to_come_stay() -> None:
    times = {"offer_at": NOW + HOUR, "mandatory_at": NOW + 2 * HOUR, "expires_at": NOW + 3 * HOUR}
    new = new_job(old(**times), ["a"], NOW)
    assert {name: getattr(new, name) for name in times} == times


def test_times_that_have_passed() -> None:
    job = old(
        offer_at=NOW - 2 * HOUR, mandatory_at=NOW - HOUR, expires_at=NOW - timedelta(minutes=30)
    )
    new = new_job(job, ["a"], NOW)
    assert (new.offer_at, new.mandatory_at) == (None, NOW)
    assert new.expires_at == NOW + timedelta(minutes=90)
    assert new.requirement is Requirement.MANDATORY
    offer = new_job(old(offer_at=NOW - HOUR, expires_at=NOW + HOUR), ["a"], NOW)
    assert (offer.offer_at, offer.mandatory_at, offer.expires_at) == (None, None, NOW + HOUR)


def wall(**after: int) -> WallClock:
    return WallClock(local=(NOW + timedelta(**after)).replace(tzinfo=None))


def test_times_on_clocks_on_the_wall() -> None:
    # A time that has passed means at once; where the job has expired already, it is not sent.
    stays = {"mandatory_at": wall(hours=-20), "expires_at": wall(hours=15)}
    new = new_job(old(**stays), ["a"], NOW)
    assert {name: getattr(new, name) for name in stays} == stays
    passed = {"mandatory_at": wall(hours=-20), "expires_at": wall(hours=13)}
    new = new_job(old(**passed), ["a"], NOW)
    assert new.mandatory_at == NOW
    assert new.expires_at == NOW + timedelta(hours=2 + 13 + 12)
    without = new_job(old(mandatory_at=wall(hours=-20)), ["a"], NOW)
    assert without.mandatory_at == wall(hours=-20)
