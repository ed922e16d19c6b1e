"""Check with the history whether a job can be cancelled."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from schemas.errors import PcmError

if TYPE_CHECKING:
    from broker.history.queries import Accounts


class NotCancellable(PcmError):
    """A job has ended, or is not for a workstation; the message says which."""


def check_cancellable(accounts: "Accounts", job_id: str, workstations: Sequence[str] = ()) -> str:
    """Return the complete id of a job that has not ended everywhere.

    Args:
        accounts: the history's queries of jobs (`history.accounts`).
        job_id: the job's id, or its beginning.
        workstations: check only these; default: all.

    Raises:
        UnknownId: no job has this id, or several ids begin so.
        NotCancellable: the job has ended there, or is not for one of the workstations.
    """
    from broker.history.queries import RUNNING, WAITING

    job_id = accounts.find(job_id).id
    pairs = accounts.pairs(job_id, names=workstations or None)
    if not_addressed := sorted(set(workstations) - {pair.workstation for pair in pairs}):
        raise NotCancellable(f"{job_id}: is not for {', '.join(not_addressed)}; nothing was sent")
    if pairs and not any(pair.state in (*WAITING, *RUNNING) for pair in pairs):
        where = ", ".join(workstations) or "everywhere"
        raise NotCancellable(f"{job_id}: has ended {where}; there is nothing to cancel")
    return job_id
