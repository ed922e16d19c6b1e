"""The content of a claim file: which agent decided a job, and how."""

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
OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # follow no link, block on no pipe
UNKNOWN = "unknown"
"""The agent of a decision that cannot be read."""


@dataclass(frozen=True)
class ClaimRecord:
    """The decision about a job on this workstation, and the agent that made it."""

    agent: str
    state: str
    ended: bool = False

    @property
    def running(self) -> bool:
        """Whether the job was started and its end is not recorded."""
        return self.state == State.STARTED and not self.ended


_UNREADABLE = ClaimRecord(UNKNOWN, "unreadable")


def decision(state_dir: Path, job_id: str) -> ClaimRecord | None:
    """Return the decision about a job in a state directory; None if it is undecided."""
    path = state_dir / "claims" / job_id
    try:
        file = check_regular(os.open(path, os.O_RDONLY | OPEN_FLAGS))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in NO_FILES:
            return None  # not readable now; an agent that decides will try to open it again
        return _UNREADABLE
    try:
        return read_claim(file, state_dir)
    finally:
        os.close(file)


def check_regular(file: int) -> int:
    """Return the file if it is a regular one; any user may create other kinds in the folder.

    Raises:
        OSError: it is not a regular file; it was closed.
    """
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # no hard link to another file
        os.close(file)
        raise OSError(errno.EINVAL, "is not a regular file")
    return file


def overwrite(file: int, decision: ClaimRecord) -> None:
    """Overwrite the whole file with one write.

    Raises:
        OSError: the write failed or was incomplete.
    """
    text = json.dumps(asdict(decision)).encode().ljust(os.fstat(file).st_size)
    if os.pwrite(file, text, 0) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_claim(file: int, state_dir: Path) -> ClaimRecord | None:
    """Return the decision in a claim file; None if it is empty."""
    text = os.pread(file, READ_LIMIT, 0)
    if not text:
        return None
    try:
        content = json.loads(text)
        decision = ClaimRecord(
            str(content["agent"]), State(content["state"]), content.get("ended") is True
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # An agent may have decided to start the job, so no other agent starts it.
        return _UNREADABLE
    forged = decision.agent == AgentKind.SERVICE and not _is_state_owners(file, state_dir)
    return _UNREADABLE if forged else decision


def _is_state_owners(file: int, state_dir: Path) -> bool:
    """Whether the service agent's user, who owns the state directory, owns a file."""
    return os.fstat(file).st_uid == state_dir.stat().st_uid
