"""What the file of a claim says: which agent decided what of a job."""

import errno
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from agents.platforms import NO_FILES
from broker.amqp.topology import AgentKind
from schemas import State

READ_LIMIT = 4096
SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # neither by a link, nor waiting at a pipe
UNKNOWN = "unknown"
"""Stands for the agent of a decision that cannot be read."""


@dataclass(frozen=True)
class ClaimRecord:
    """What was decided of a job on this workstation, and by which agent."""

    agent: str
    state: str
    ended: bool = False

    @property
    def running(self) -> bool:
        """Whether the job was started, and its end is not noted."""
        return self.state == State.STARTED and not self.ended


_UNREADABLE = ClaimRecord(UNKNOWN, "unreadable")


def decision(state_dir: Path, job_id: str) -> ClaimRecord | None:
    """Return what the agents of a state directory decided of a job, None while nothing is."""
    path = state_dir / "claims" / job_id
    try:
        file = regular(os.open(path, os.O_RDONLY | SAFELY))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in NO_FILES:
            return None  # it cannot be looked at now: whoever wants to decide finds out
        return _UNREADABLE
    try:
        return read(file, state_dir)
    finally:
        os.close(file)


def regular(file: int) -> int:
    """Return the file if it is a plain one: any user may put other things into the folder.

    Raises:
        OSError: it is not; it was closed.
    """
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # also no other name of another file
        os.close(file)
        raise OSError(errno.EINVAL, "is no plain file")
    return file


def overwrite(file: int, decision: ClaimRecord) -> None:
    """Write in one piece, and over all of what was there.

    Raises:
        OSError: that was not possible, or only in part.
    """
    text = json.dumps(asdict(decision)).encode().ljust(os.fstat(file).st_size)
    if os.pwrite(file, text, 0) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(file: int, state_dir: Path) -> ClaimRecord | None:
    """Return what a claim says, None while it says nothing."""
    text = os.pread(file, READ_LIMIT, 0)
    if not text:
        return None
    try:
        found = json.loads(text)
        decision = ClaimRecord(
            str(found["agent"]), State(found["state"]), found.get("ended") is True
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Somebody began to write: what they decided is unknown, so nobody starts it.
        return _UNREADABLE
    forged = decision.agent == AgentKind.SERVICE and not _is_keepers(file, state_dir)
    return _UNREADABLE if forged else decision


def _is_keepers(file: int, state_dir: Path) -> bool:
    """Whether a file belongs to the user whose state directory it is in: the service agent's."""
    return os.fstat(file).st_uid == state_dir.stat().st_uid
