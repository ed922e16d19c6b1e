"""A job that was sent, made again for some of its workstations."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.settings import DispatcherSettings, load
from schemas import Job, State, WallClock, workstation
from schemas.errors import PcmError
from schemas.job import new_job_id, whoami
from schemas.text import listed
from schemas.times import earliest, latest

if TYPE_CHECKING:
    from broker.history.queries import Accounts

_SHOWN = 10


class NothingToRerun(PcmError):
    """A job cannot be sent again, or nowhere that was asked for; the text says why.

    Attributes:
        cancelled: on how many workstations it was cancelled, if that was not asked for.
    """

    def __init__(self, text: str, cancelled: int = 0) -> None:
        super().__init__(text)
        self.cancelled = cancelled


class NotItsWorkstation(NothingToRerun):
    """A workstation was named that the job was not for."""


class Rerun(NamedTuple):
    """A job made again, and the workstations left out, since its secrets are not sealed for them.

    It is sent by `Dispatcher.dispatch`, with `partly` also where some of them have no queue.
    """

    job: Job
    left_out: list[str]


def rerun(
    accounts: "Accounts",
    job_id: str,
    states: Sequence[str] = (),
    workstations: Iterable[str] = (),
    settings: DispatcherSettings | None = None,
) -> Rerun:
    """Return a new job with a job's command, for the workstations where it is in some states.

    A mandatory time that has passed is now; an expiry that has passed is as far from now as it
    was from the job's making.

    Args:
        accounts: the history's, which know the job and where it failed.
        job_id: its id, or the beginning.
        states: such as "cancelled"; default: those of `FAILURES`, or, where workstations are
            named, any.
        workstations: only these; default: all.
        settings: the signing key and the trusted keys; default: from the environment.

    Raises:
        UnknownId: no job has this id, or several begin so.
        NotItsWorkstation: the job was not for one that is named.
        NothingToRerun: it is so nowhere, or the job itself is not known.
        SigningRefused: it would be signed here, and no trusted key has signed it.
    """
    from broker.history.queries import FAILURES
    from broker.signing.resign_policy import check_resignable

    wanted = list(dict.fromkeys(workstations))
    allowed = states or (None if wanted else FAILURES)
    job_id = accounts.find(job_id).id
    job = accounts.body(job_id)
    if job is None:
        raise NothingToRerun(f"{job_id}: the history has reports of it, but not the job itself")
    check_resignable(job, *accounts.recorded(job_id), settings or load(DispatcherSettings))
    at = {pair.workstation: pair.state for pair in accounts.pairs(job_id)}
    if strange := [name for name in wanted if name not in at]:
        raise NotItsWorkstation(
            f"{listed(strange, _SHOWN)}: {job_id} was not for it; nothing was sent"
        )
    names = [name for name in wanted or sorted(at) if allowed is None or at[name] in allowed]
    if not names:
        raise _nowhere(job_id, list(at.values()), allowed or ())
    able, left_out = _able(job, names)
    return Rerun(again(job, able, datetime.now(UTC)), left_out)


def _able(job: Job, names: list[str]) -> tuple[list[str], list[str]]:
    """Return the workstations that can open a job's secrets, and the others."""
    if job.command.secrets is None:
        return names, []
    sealed_for = job.command.secrets.workstations()
    able = [name for name in names if name in sealed_for]
    left_out = [name for name in names if name not in sealed_for]
    if not able:
        raise NothingToRerun(
            f"{job.id}: its secrets are not sealed for {listed(left_out, _SHOWN)};"
            " send it anew, by pcm send --secret"
        )
    return able, left_out


def _nowhere(job_id: str, found: list[str], states: Sequence[str]) -> NothingToRerun:
    """Return that there is nowhere to send a job again, and what might have been meant."""
    from broker.history.queries import FAILURES

    words = " or ".join(state.replace("_", " ") for state in states)
    asked = "failed" if tuple(states) == FAILURES else f"is {words}"
    text = f"{job_id}: it {asked} on no workstation; nothing was sent"
    cancelled = 0 if State.CANCELLED in states else found.count(State.CANCELLED)
    if cancelled:
        text += f"; it was cancelled on {cancelled:,}"
    return NothingToRerun(text, cancelled)


def again(job: Job, names: Iterable[str], now: datetime) -> Job:
    """Return a new job with a job's command, for the workstations that are named.

    Times that are to come stay. A mandatory time that has passed is now, an offer time that has
    passed is none, and an expiry that has passed is as far from now as it was from the time when
    the job was made. Times on clocks on the wall stay as they are, unless the expiry has passed on
    the first of them: then all of them are treated so.
    """
    names = list(names)
    changes = {
        "id": new_job_id(),
        "command": job.command.narrowed(names),
        "targets": tuple(map(workstation, names)),
        "excluded": (),
        "rerun_of": job.id,
        "rollout": None,
        "schedule": None,
        "sender": whoami(),
        "created_at": now,
        **_times(job, now),
    }
    return Job.model_validate({**job.model_dump(), **changes})


def _times(job: Job, now: datetime) -> dict[str, Any]:
    on_walls = isinstance(job.expires_at or job.mandatory_at or job.offer_at, WallClock)
    if on_walls and not (job.expires_at and earliest(job.expires_at) <= now):
        return {}  # what has passed on a clock is done there at once
    mandatory_at, offer_at, expires_at = (
        None if on_walls or moment is None or earliest(moment) <= now else moment
        for moment in (job.mandatory_at, job.offer_at, job.expires_at)
    )
    if job.mandatory_at is not None and mandatory_at is None:
        mandatory_at = now
    if job.expires_at is not None and expires_at is None:
        expires_at = now + (latest(job.expires_at) - job.created_at)
    return {"mandatory_at": mandatory_at, "offer_at": offer_at, "expires_at": expires_at}
