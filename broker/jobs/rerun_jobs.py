"""Create a new job that runs a job's command again on some of its workstations."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.history.queries.rows import FAILURES, STATES
from broker.settings import DispatcherSettings, load
from broker.signing.resign_policy import Recorded, check_resignable
from schemas import Job, State, WallClock, workstation
from schemas.errors import PcmError
from schemas.orders.job import new_job_id, whoami
from schemas.text import listed
from schemas.times import earliest, latest

if TYPE_CHECKING:
    from broker.history.queries.jobs import JobQueries

_SHOWN = 10


class NothingToRerun(PcmError):
    """A job cannot be sent again, or matches on no workstation; the text gives the reason.

    Attributes:
        others: the states that would select workstations: cancelled, refused.
    """

    def __init__(self, text: str, others: tuple[State, ...] = ()) -> None:
        super().__init__(text)
        self.others = others


class NotItsWorkstation(NothingToRerun):
    """The job was not for workstations that were named.

    Attributes:
        names: these workstations.
    """

    def __init__(self, job_id: str, names: Sequence[str]) -> None:
        super().__init__(f"{listed(names, _SHOWN)}: {job_id} was not for it; nothing was sent")
        self.names = tuple(names)


class Rerun(NamedTuple):
    """The new job, and the workstations left out because its secrets are not sealed for them.

    Send it by `Dispatcher.dispatch`; with `partly`, also where some targets have no queue.
    """

    job: Job
    left_out: list[str]


def rerun(
    queries: "JobQueries",
    job_id: str,
    states: Sequence[str] = (),
    workstations: Iterable[str] = (),
    settings: DispatcherSettings | None = None,
) -> Rerun:
    """Return a new job with a job's command, for the workstations where it is in some states.

    A mandatory time that has passed becomes now. An expiry that has passed becomes as long from
    now as it was from the job's creation.

    Args:
        queries: the history's queries (`History.jobs`).
        job_id: the job's id, or its beginning.
        states: such as "cancelled"; default: all of a failure, or any state if workstations are
            named; but where an agent refused the job, only if "refused" is among them.
        workstations: only these; default: all.
        settings: the signing key and the trusted keys; default: from the environment.

    Raises:
        UnknownId: no job has this id, or several ids begin so.
        NotItsWorkstation: the job was not for one of the workstations.
        NothingToRerun: it is in these states nowhere, or the history has only its reports.
        SigningRefused: it would be signed here, but the keys that signed the original may not
            order it now.
    """
    wanted = list(dict.fromkeys(workstations))
    allowed = states or (_but_refused(STATES) if wanted else failures())
    job_id = queries.find(job_id).id
    job = queries.body(job_id)
    if job is None:
        raise NothingToRerun(f"{job_id}: the history has reports of it, but not the job itself")
    at = {outcome.workstation: outcome.state for outcome in queries.outcomes(job_id)}
    if not_addressed := [name for name in wanted if name not in at]:
        raise NotItsWorkstation(job_id, not_addressed)
    names = [name for name in wanted or sorted(at) if at[name] in allowed]
    if not names:
        raise _no_match(job_id, list(at.values()), allowed)
    able, left_out = _split_by_secrets(job, names)
    now = datetime.now(UTC)
    new = new_job(job, able, now)
    recorded = Recorded(queries.plan(job_id) or job, *queries.recorded(job_id))
    settings = settings or load(DispatcherSettings)
    check_resignable(recorded, new, settings, now, queries.groups(able))
    return Rerun(new, left_out)


def failures() -> tuple[str, ...]:
    """Return the states of a failure; what an agent has refused is sent again only if asked for."""
    return _but_refused(FAILURES)


def _but_refused(states: Iterable[str]) -> tuple[str, ...]:
    return tuple(state for state in states if state != State.REFUSED)


def _split_by_secrets(job: Job, names: list[str]) -> tuple[list[str], list[str]]:
    """Return the workstations that can open a job's secrets, and the others."""
    if job.command.secrets is None:
        return names, []
    sealed_for = job.command.secrets.workstations()
    able = [name for name in names if name in sealed_for]
    left_out = [name for name in names if name not in sealed_for]
    if not able:
        raise NothingToRerun(
            f"{job.id}: its secrets are not sealed for {listed(left_out, _SHOWN)};"
            " send a new job with pcm send --secret"
        )
    return able, left_out


def _no_match(job_id: str, found: list[str], states: Sequence[str]) -> NothingToRerun:
    """Return the error that a job is in these states nowhere; name where it ended otherwise."""
    words = " or ".join(state.replace("_", " ") for state in states)
    selected = "failed" if tuple(states) == failures() else f"is {words}"
    text = f"{job_id}: it {selected} on no workstation; nothing was sent"
    others = [
        state
        for state in (State.CANCELLED, State.REFUSED)
        if state not in states and state in found
    ]
    if others:
        text += "; it was " + ", ".join(f"{at} on {found.count(at):,}" for at in others)
    return NothingToRerun(text, tuple(others))


def new_job(job: Job, names: Iterable[str], now: datetime) -> Job:
    """Return a new job with a job's command, for the named workstations.

    Future times stay. A mandatory time that has passed becomes now, an offer time that has passed
    is removed, and an expiry that has passed becomes as long from now as it was from the job's
    creation. Times on workstation clocks stay, unless the expiry has passed on the earliest clock:
    then they count as passed.
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
    local = isinstance(job.expires_at or job.mandatory_at or job.offer_at, WallClock)
    if local and not (job.expires_at and earliest(job.expires_at) <= now):
        return {}  # a workstation acts immediately on a time that its clock has passed
    mandatory_at, offer_at, expires_at = (
        None if local or moment is None or earliest(moment) <= now else moment
        for moment in (job.mandatory_at, job.offer_at, job.expires_at)
    )
    if job.mandatory_at is not None and mandatory_at is None:
        mandatory_at = now
    if job.expires_at is not None and expires_at is None:
        expires_at = now + (latest(job.expires_at) - job.created_at)
    return {"mandatory_at": mandatory_at, "offer_at": offer_at, "expires_at": expires_at}
